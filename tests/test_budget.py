"""The budget: its measure, its steering, and the promise that its freeze keeps."""

import math
import re
from fractions import Fraction

import pytest
import torch
from conftest import conv_net, converted, layers_of, shake
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import csq_mini as csq
from csq_mini.planes import DROPPED, FILLED, LEARNED

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


def linears(*sizes, planes=8, masks="free"):
    return converted(nn.Sequential(*(nn.Linear(size, 1, bias=False) for size in sizes)), planes, masks)


def set_masks(model, values):
    """Give each layer its mask logits, or its precision."""
    for planes, q in zip(layers_of(model).values(), values):
        planes.q.data.copy_(torch.tensor(q))


def sizes_and_counts(model):
    return [(planes.shape.numel(), int(planes.open.sum())) for planes in layers_of(model).values()]


@st.composite
def budgets(draw):
    """A random model with random, often tied mask logits or precisions, a floor, and any target in reach."""
    planes = draw(st.integers(1, 8))
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any))
    masks = draw(st.sampled_from(csq.planes.MASKS))
    model = shake(linears(*sizes, planes=planes, masks=masks), draw(st.integers(0, 99)))
    logit = st.sampled_from([-0.5, 0.0, 0.5]) | st.floats(-3, 3, width=32)
    precision = st.sampled_from([0.5, 1.0, float(planes)]) | st.floats(-1, 9, width=32)
    one = precision if masks == "ordered" else st.lists(logit, min_size=planes, max_size=planes)
    set_masks(model, [draw(one) for _ in sizes])
    floors = draw(st.lists(st.integers(0, planes), min_size=len(sizes), max_size=len(sizes)))
    total, low = sum(sizes), sum(k * n for k, n in zip(floors, sizes))
    room = draw(st.one_of(st.integers(0, 1000), st.sampled_from([0, 1000])))
    target = Fraction(low, total) + (planes - Fraction(low, total)) * Fraction(room, 1000)
    digits = draw(st.sampled_from([1, 2, 17]))
    target = min(max(float(round(target, digits)), math.ceil(low / total * 1e12) / 1e12), float(planes))
    return model, target, dict(zip(map(str, range(len(sizes))), floors))


@settings(max_examples=200)
@given(budgets(), st.sampled_from([1.0, 20.0, math.inf]))
def test_freezing_keeps_the_promise(case, beta):
    model, target, floors = case
    csq.set_temperature(model, beta)
    budget = csq.Budget(model, target, floor=floors)
    counts = budget.freeze()
    exact = Fraction(repr(target))
    total = budget.total
    size = sum(n * k for n, k in sizes_and_counts(model))
    assert size <= exact * total  # at most the target,
    assert all(k == planes.available or size + n > exact * total  # and no plane more would fit
               for (n, k), planes in zip(sizes_and_counts(model), layers_of(model).values()))  # fmt: skip
    assert budget.bits() == size / total <= target
    assert list(counts.values()) == [k for _, k in sizes_and_counts(model)]
    assert all(counts[name] >= floor for name, floor in floors.items())
    for planes in layers_of(model).values():
        kept = planes.open.nonzero().flatten().tolist()
        assert kept == list(range(kept[0], kept[0] + len(kept))) if kept else True
        assert torch.isin(planes.mask, torch.tensor([DROPPED, LEARNED, FILLED])).all()
    assert csq.report(csq.harden(model)).total.paper_bits == pytest.approx(budget.bits(), rel=1e-12)


@given(budgets())
def test_every_target_of_the_named_range_is_reached_and_no_other(case):
    model, _, floors = case
    with pytest.raises(ValueError) as error:
        csq.Budget(model, math.nan, floor=floors)
    low, high = map(float, re.search(r"between (\S+) and (\S+) bits", str(error.value)).groups())
    for target in (low, high):
        csq.Budget(model, target, floor=floors)
    for target in (low - 0.01, high + 0.01):
        with pytest.raises(ValueError, match=re.escape(repr(target))):
            csq.Budget(model, target, floor=floors)


def test_a_decimal_target_means_its_decimal():
    # In floats 0.29 * 100 is just below 29, and the plane that fits exactly would be lost.
    assert csq.Budget(linears(29, 71), 0.29, floor=0).freeze() == {"0": 1, "1": 0}
    assert csq.Budget(linears(30, 70), 0.29, floor=0).freeze() == {"0": 0, "1": 0}


@pytest.mark.parametrize(
    "target, counts", [(1.0, [1, 1, 1]), (1.25, [1, 2, 1]), (1.5, [2, 1, 1]), (1.75, [2, 2, 1]), (8.0, [8, 8, 8])]
)
def test_ties_go_to_the_more_significant_plane_then_to_the_earlier_layer(target, counts):
    model = linears(4, 2, 2)
    assert list(csq.Budget(model, target, floor=0).freeze().values()) == counts


def test_of_equal_logits_the_more_significant_plane_comes_first_whatever_its_layer():
    model = linears(10, 10)
    set_masks(model, [[0.5] + [-1.0] * 7, [-1.0] * 7 + [0.5]])
    assert csq.Budget(model, 0.5, floor=0).freeze() == {"0": 0, "1": 1}


def test_planes_are_kept_in_order_of_their_mask_logits():
    model = linears(10, 10)
    set_masks(model, [[1, 2, 3, 4, 5, 6, 7, 8.5], [8, 0.1, 0.2, 0.3, 0.4, 7.5, 0.6, 0.7]])
    assert csq.Budget(model, 2.5).freeze() == {"0": 3, "1": 2}  # 8.5, 8, 7.5, 7 and 6


def test_a_plane_that_does_not_fit_is_passed_over_for_a_smaller_one():
    model = linears(100, 3)
    set_masks(model, [[9.0] * 8, [0.1] * 8])
    assert csq.Budget(model, 1.5).freeze() == {"0": 1, "1": 8}


def test_bits_weighs_layers_by_size():
    model = linears(30, 10)
    set_masks(model, [[1.0, -1, 1, 0, 0, 0, 0, 0], [1.0] * 8])
    assert csq.Budget(model, 4.0).bits() == (30 * 2 + 10 * 8) / 40
    assert csq.Budget(converted(), 4.0).bits() == 8.0


# The penalty of free masks


@torch.no_grad()
def penalty_by_hand(model, target, strength):
    layers = list(layers_of(model).values())
    total = sum(planes.p.shape[1] for planes in layers)
    shares = [planes.p.shape[1] / total for planes in layers]
    bits = sum(share * int((planes.q > 0).sum()) for share, planes in zip(shares, layers))
    relaxed = sum(share * float(torch.sigmoid(planes.beta * planes.q).sum()) for share, planes in zip(shares, layers))
    return strength * (bits - target) * relaxed


@pytest.mark.parametrize("target", [1.5, 4.0, 7.9])
@pytest.mark.parametrize("beta", [1.0, 20.0])
@pytest.mark.parametrize("strength", [0.0, 0.04, 3.0])
def test_the_penalty_is_its_formula(target, beta, strength):
    model = shake(converted(masks="free"))
    csq.set_temperature(model, beta)
    penalty = csq.Budget(model, target, strength).penalty().detach()
    assert penalty.shape == () and penalty.item() == pytest.approx(penalty_by_hand(model, target, strength), rel=1e-5)


def test_hard_the_penalty_counts_open_planes():
    model = shake(converted(masks="free"))
    budget = csq.Budget(model, 2.0, strength=0.5)
    assert budget.penalty().detach().item() == pytest.approx(0.5 * (budget.bits() - 2.0) * budget.bits(), rel=1e-6)


@pytest.mark.parametrize("target, sign", [(1.5, 1), (7.9, -1)])
@pytest.mark.parametrize("floor", [0, 1, 3])
def test_above_the_target_it_closes_planes_and_below_it_opens_them(target, sign, floor):
    model = shake(converted(masks="free"), zeros=0)
    csq.set_temperature(model, 2.0)
    budget = csq.Budget(model, max(target, floor), 0.7, floor=floor)
    budget.penalty().backward()
    for planes in layers_of(model).values():
        f = torch.sigmoid(2 * planes.q.detach())
        slope = 0.7 * (budget.bits() - budget.target) * planes.p.shape[1] / budget.total * 2 * f * (1 - f)
        best = planes.q.detach().argsort(descending=True)
        slope[best[:floor]] = 0  # these stay: nothing pulls them
        assert torch.allclose(planes.q.grad, slope, rtol=1e-4, atol=1e-9)
        assert (planes.q.grad[best[floor:]].sign() == (sign if budget.bits() > budget.target else -1)).all()


def test_without_growth_nothing_pulls_below_the_target():
    model = linears(3, 5)
    set_masks(model, [[-1.0] * 6 + [1.0] * 2] * 2)  # 2 planes each
    for target, pull in ((3.0, False), (1.0, True)):
        penalty = csq.Budget(model, target, growth=False).penalty()
        assert bool(penalty) == pull
        whole = csq.Budget(model, target).penalty()
        assert whole < 0 if not pull else torch.equal(whole, penalty)


def test_unweighted_every_layer_pulls_alike_and_the_promise_stays():
    model = linears(2, 50)
    csq.set_temperature(model, 1.0)
    for weighted in (True, False):
        for planes in layers_of(model).values():
            planes.q.grad = None
        csq.Budget(model, 3.0, weighted=weighted, floor=0).penalty().backward()
        small, large = (float(planes.q.grad.sum()) for planes in layers_of(model).values())
        assert large == pytest.approx(small * (25 if weighted else 1), rel=1e-4)
    set_masks(model, [[-1.0] * 8, [1.0] * 8])
    budget = csq.Budget(model, 3.0, strength=1.0, weighted=False)
    relaxed = [torch.sigmoid(planes.q.detach()).sum() for planes in layers_of(model).values()]
    assert float(budget.penalty().detach()) == pytest.approx(float((4.0 - 3.0) * sum(relaxed) / 2), rel=1e-5)
    with pytest.warns(UserWarning, match="cut off 4.69"):
        budget.freeze()
    assert budget.bits() <= 3.0  # by size, whatever the penalty counted


def test_on_the_target_nothing_pulls():
    model = converted(masks="free")
    csq.set_temperature(model, 1.0)
    penalty = csq.Budget(model, 8.0).penalty()
    penalty.backward()
    assert penalty == 0 and not any(planes.q.grad.any() for planes in layers_of(model).values())


@pytest.mark.parametrize("start, target", [(0.5, 3.0), (-0.5, 3.0)])
def test_following_the_penalty_prunes_and_grows_to_the_target(start, target):
    model = linears(40, 60, 30)
    generator = torch.Generator().manual_seed(0)
    for planes in layers_of(model).values():
        planes.q.data.copy_(start + 0.3 * torch.randn(8, generator=generator))
    csq.set_temperature(model, 2.0)
    budget = csq.Budget(model, target, strength=1.0)
    optimizer = torch.optim.SGD([planes.q for planes in layers_of(model).values()], lr=0.1)
    first = abs(budget.bits() - target)
    for _ in range(150):
        optimizer.zero_grad()
        budget.penalty().backward()
        optimizer.step()
    assert first > 2 and abs(budget.bits() - target) <= 0.5


def test_the_penalty_is_the_same_under_autocast():
    model = shake(converted(masks="free"))
    csq.set_temperature(model, 3.0)
    budget = csq.Budget(model, csq.Budget(model, 4.0).bits() + 0.003)
    expected = budget.penalty()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(budget.penalty(), expected)


# The penalty of ordered masks


AHEAD = {"mu": 8.0, "progress": 0.5, "steered": True, "cut": 0.0}


def ordered(*precisions, sizes=(30, 10), beta=math.inf):
    model = linears(*sizes, masks="ordered")
    set_masks(model, list(precisions))
    csq.set_temperature(model, beta)
    return model


def test_the_line_falls_from_all_planes_to_the_target_and_stays():
    budget = csq.Budget(ordered(8.0, 8.0), 2.0)
    assert [budget.line(at) for at in (0, 0.375, 0.75, 0.9, 1)] == [8, 5, 2, 2, 2]


def test_a_precision_is_pulled_at_by_lambda_and_its_layers_share():
    model = ordered(3.2, 5.9)
    budget = csq.Budget(model, 4.0)
    budget.load_state_dict(AHEAD)
    penalty = budget.penalty(0.5)
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(budget.multiplier * (0.75 * 3.2 + 0.25 * 5.9), rel=1e-6)
    by = [float(planes.q.grad) for planes in layers_of(model).values()]
    assert by == pytest.approx([0.75 * budget.multiplier, 0.25 * budget.multiplier], rel=1e-6)


def test_a_precision_comes_back_soon_from_where_a_large_pull_has_driven_it():
    model = ordered(3.0, 3.0, beta=2.0)
    budget, optimizer, seen = csq.Budget(model, 1.0), csq.optimizer(model, steps=100), []
    budget.load_state_dict(AHEAD | {"mu": 14.0})
    for _ in range(100):
        optimizer.zero_grad()
        budget.penalty(0.5).backward()
        optimizer.step()
        seen.append([float(planes.q.detach()) for planes in layers_of(model).values()])
    assert all(0.5 < k < 1.5 for k in seen[-1]) and min(map(min, seen)) > 0


def test_below_the_line_lambda_turns_round_and_opens_planes():
    model = ordered(2.0, 3.0, beta=2.0)
    budget = csq.Budget(model, 6.0)
    budget.penalty(0.75), budget.penalty(0.8)
    assert budget.multiplier < 0
    before = [float(planes.q.detach()) for planes in layers_of(model).values()]
    optimizer = csq.optimizer(model, steps=50)
    for _ in range(20):
        optimizer.zero_grad()
        budget.penalty(0.8).backward()
        optimizer.step()
    assert all(float(planes.q.detach()) > k + 2 for planes, k in zip(layers_of(model).values(), before))


def test_beyond_its_floor_and_all_planes_a_precision_is_held_and_not_pulled_at():
    model = ordered(0.5, 9.0)
    for mu in (0.0, 8.0):
        model.zero_grad()
        budget = csq.Budget(model, 4.0, floor={"0": 1})
        budget.load_state_dict(AHEAD | {"mu": mu})
        budget.penalty(0.0).backward()
        low, high = (float(planes.q.grad) / (1 + budget.multiplier) for planes in layers_of(model).values())
        assert low == pytest.approx(0.75 * 2 * (0.5 - 1)) and high == pytest.approx(0.25 * 2 * (9 - 8))


@pytest.mark.parametrize("precision, way", [(6.0, 1), (3.0, 0), (2.0, -1)])
def test_lambda_grows_above_the_line_and_falls_below_it(precision, way):
    budget = csq.Budget(ordered(precision, precision), 3.0)
    budget.load_state_dict(AHEAD | {"progress": 0.75})
    before = budget.multiplier
    budget.penalty(0.8)
    after = budget.multiplier
    assert (after > before) - (after < before) == way
    passed = budget.multiplier
    budget.penalty(0.8)  # no progress, no change
    assert budget.multiplier == passed


def test_lambda_grows_by_progress_not_by_steps():
    few, many = (csq.Budget(ordered(6.0, 6.0), 3.0) for _ in range(2))
    for budget, steps in ((few, 10), (many, 1000)):
        for step in range(steps + 1):
            budget.penalty(0.76 + 0.01 * step / steps)
    assert few.multiplier == pytest.approx(many.multiplier, rel=1e-2)


def test_without_growth_lambda_never_falls():
    budget = csq.Budget(ordered(2.0, 2.0), 3.0, growth=False)
    budget.penalty(0.5), budget.penalty(0.9)
    assert budget.multiplier == 0


def test_strength_0_only_measures():
    budget = csq.Budget(ordered(6.0, 6.0), 3.0, strength=0.0)
    assert not budget.penalty(0.9) and budget.multiplier == 0


def test_a_budget_goes_on_from_the_state_of_another():
    first, second = (csq.Budget(ordered(6.0, 6.0), 3.0) for _ in range(2))
    first.penalty(0.5), first.penalty(0.6)
    second.load_state_dict(first.state_dict())
    assert second.multiplier == first.multiplier > 0
    assert torch.equal(first.penalty(0.7), second.penalty(0.7)) and second.multiplier == first.multiplier


@pytest.mark.parametrize("progress", [None, -0.1, 1.1, math.nan, "half"])
def test_ordered_masks_ask_for_the_progress(progress):
    with pytest.raises(ValueError, match="step / search_steps"):
        csq.Budget(ordered(6.0, 6.0), 3.0).penalty(progress)


def test_both_kinds_of_masks_in_one_model_are_refused():
    model = nn.Sequential(nn.Linear(10, 4), nn.Linear(10, 6))
    csq.convert(model[0])
    csq.convert(model[1], masks="free")
    with pytest.raises(ValueError, match="ordered masks and some free ones.*one call"):
        csq.Budget(model, 2.0)


@pytest.mark.parametrize("masks", csq.planes.MASKS)
@pytest.mark.parametrize("precision, cut", [(2.0, 0.0), (3.0, 0.25), (6.0, 3.25)])
def test_a_freeze_that_cuts_off_more_than_a_quarter_of_a_bit_says_so(masks, precision, cut, recwarn):
    model = linears(30, 10, masks=masks)
    kept = [[precision]] * 2 if masks == "ordered" else [[0.5 - (b < 8 - precision) for b in range(8)]] * 2
    set_masks(model, [k[0] for k in kept] if masks == "ordered" else kept)
    budget = csq.Budget(model, 2.75)
    budget.penalty(1.0)
    budget.freeze()
    assert budget.cut == pytest.approx(max(precision - budget.bits(), 0)) and budget.cut >= cut
    said = [str(w.message) for w in recwarn if "cut off" in str(w.message)]
    assert bool(said) == (budget.cut > 0.25)
    if said:
        assert f"cut off {budget.cut:.2f}" in said[0] and "2.75" in said[0] and "csq.optimizer" in said[0]


def test_a_freeze_without_a_search_cuts_in_silence(recwarn):
    budget = csq.Budget(linears(30, 10, masks="ordered"), 2.0)
    budget.freeze()
    assert budget.cut == pytest.approx(6.0) and not [w for w in recwarn if "cut off" in str(w.message)]


def test_layers_converted_to_different_planes_are_refused():
    model = nn.Sequential(nn.Linear(10, 4), nn.Linear(10, 6))
    csq.convert(model[0], 3)
    csq.convert(model[1], 8)
    with pytest.raises(ValueError, match="different numbers of planes.*one call"):
        csq.Budget(model, 2.0)


# What a budget refuses


@pytest.mark.parametrize("target", [math.nan, math.inf, -math.inf, 0, 0.5, -1, 8.001, 100, "two", None, []])
def test_a_target_that_cannot_be_reached_names_the_range(target):
    with pytest.raises(ValueError, match=re.escape(repr(target)) + ".*between 1 and 8 bits"):
        csq.Budget(converted(), target)


@pytest.mark.parametrize("planes, floor, low, high", [(4, 2, "2", "4"), (8, 0, "0", "8"), (3, 3, "3", "3")])
def test_the_range_follows_floor_and_planes(planes, floor, low, high):
    with pytest.raises(ValueError, match=f"between {low} and {high} bits"):
        csq.Budget(converted(planes=planes), 8.5, floor=floor)


@pytest.mark.parametrize("strength", [-0.1, math.nan, math.inf, True, "0.4", None])
def test_a_bad_strength_is_named(strength):
    with pytest.raises(ValueError, match=f"strength.*{strength!r}"):
        csq.Budget(converted(), 2.0, strength=strength)


@pytest.mark.parametrize("floor", [-1, 9, True, 2.5, "1", None, {"*": 9}, {"0": 2.0}, {"*": True}])
def test_a_bad_floor_is_named_with_its_range(floor):
    value = next(iter(floor.values())) if isinstance(floor, dict) else floor
    with pytest.raises(ValueError, match=f"floor.*0 to 8.*{value!r}"):
        csq.Budget(converted(), 4.0, floor=floor)


def test_floors_by_pattern_take_the_first_that_matches():
    model = nn.Sequential(conv_net(), nn.Linear(10, 4))
    csq.convert(model)
    counts = csq.Budget(model, 2.0, floor={"0.0": 5, "0.*": 0, "1": 3}).freeze()
    assert counts["0.0"] >= 5 and counts["1"] >= 3
    budget = csq.Budget(converted(), 1.0, floor={"11": 1})  # what no pattern names keeps one plane
    assert min(budget.freeze().values()) == 1


def test_a_floor_pattern_that_matches_nothing_is_named():
    with pytest.raises(ValueError, match=r"'layer\.\*' matches no layer.*near names: "):
        csq.Budget(converted(), 2.0, floor={"layer.*": 2})
