"""What the freeze makes of a layer: the planes kept, the weight rounded onto them, and nothing of the others."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import codes_of, converted, layers_of, set_codes, shake, snapshot, unchanged
from torch import nn

import csq_mini as csq
from csq_mini.bits import round_to_grid
from csq_mini.planes import DROPPED, FILLED, LEARNED, PlaneSum


def frozen(count, seed=0, shape=(20, 10), beta=math.inf):
    layer = shake(converted(nn.Linear(*shape)), seed)
    csq.set_temperature(layer, beta)
    csq.Budget(layer, float(count), floor=0).freeze()
    return layer


# Rounding


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("beta", [1.0, 200.0, math.inf])
def test_freezing_rounds_the_present_weight_onto_the_kept_planes(seed, beta):
    model = shake(converted(nn.Linear(20, 10)), seed, zeros=0)
    planes = model.csq
    csq.set_temperature(model, beta)
    weight, before = model.weight.detach().double(), float(planes.scale.detach())
    csq.Budget(model, 3.0).freeze()
    unit = float(planes.scale.detach() / 255)
    assert before / 2 < float(planes.scale.detach()) <= before
    kept = planes.open.nonzero().flatten().tolist()
    limit = 2 ** (kept[-1] + 1) - 2 ** kept[0]
    expected = (weight / unit / 2 ** kept[0]).round().mul(2 ** kept[0]).clamp(-limit, limit)
    csq.set_temperature(model, math.inf)
    assert torch.equal(codes_of(planes).view(planes.shape).double(), expected)
    assert torch.equal(model.weight, (planes.scale / 255) * expected.float())
    csq.set_temperature(model, 1.0)
    assert torch.allclose(model.weight, csq.harden(model).weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_layer_keeps_the_planes_and_the_scale_onto_which_its_weight_rounds_best(count):
    model = shake(converted())
    csq.set_temperature(model, 30.0)
    better = []
    for planes in layers_of(model).values():
        weight, scale = planes().detach(), planes.scale.detach().clone()
        runs = [(high - count, high) for high in range(count, planes.available + 1)]
        errors = {}
        for part in range(8):
            step = scale * 2 ** (-part / 8) / (2**planes.available - 1)
            rounded = [step * round_to_grid(weight, step, *run) for run in runs]
            errors[part] = min(float((w - weight).double().square().sum()) for w in rounded)
        planes.freeze(count)
        assert planes.open.sum() == count
        found = float((planes(hard=True).detach() - weight).double().square().sum())
        assert found == pytest.approx(min(errors.values()), rel=1e-6)
        better.append(found < errors[0])
    assert any(better)  # than the present scale alone allows


def test_filled_planes_are_told_from_learned_ones_and_start_rounded():
    model = converted(nn.Sequential(nn.Linear(50, 1, bias=False), nn.Linear(50, 1, bias=False)), masks="free")
    for layer, q in zip(model, ([-1.0, -1, -1, -1, 1, -1, 1, 1], [-1.0] * 8)):
        layer.csq.q.data.copy_(torch.tensor(q))
    weight = csq.harden(model)[0].weight.detach()
    csq.Budget(model, 3.0).freeze()
    first, second = csq.report(csq.harden(model)).rows
    assert (first.planes, first.paper_bits, first.filled) == ("11F1....", 4, 1)
    assert (second.planes, second.paper_bits, second.filled) == ("FF......", 2, 2)
    assert model[0].csq.mask.tolist() == [DROPPED] * 4 + [LEARNED, FILLED, LEARNED, LEARNED]
    unit = float(model[0].csq.scale.detach() / 255) * 16
    assert (csq.harden(model)[0].weight - weight).abs().max() <= unit / 2 * 1.001
    assert str(csq.report(model)) == str(csq.report(csq.harden(model)))
    assert "F filled" in str(csq.report(model))


def test_the_kept_planes_are_those_that_the_weight_uses():
    layer = converted(nn.Linear(4, 1, bias=False))
    set_codes(layer.csq, torch.tensor([5, 20, -12, 8]))  # 20 needs five planes
    scale = layer.csq.scale.detach().clone()
    csq.Budget(layer, 3.0).freeze()
    assert layer.csq.open.tolist() == [False, False, True, True, True, False, False, False]
    assert codes_of(layer.csq).tolist() == [4, 20, -12, 8] and layer.csq.scale == scale


@pytest.mark.parametrize("count", [0, 2, 8])
def test_a_layer_of_zeros_freezes(count):
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.weight)
    csq.convert(layer)
    csq.Budget(layer, count, floor=0).freeze()
    assert layer.csq.open.sum() == count and not layer.weight.any()


def test_freezing_twice_is_refused_and_the_masks_stay():
    model = shake(converted())
    budget = csq.Budget(model, 3.0)
    assert not budget.frozen
    budget.freeze()
    assert budget.frozen
    before = snapshot(model)
    with pytest.raises(ValueError, match="frozen at .*above the target 2.0"):
        csq.Budget(model, 2.0)
    for again in (budget, csq.Budget(model, 3.0)):
        with pytest.raises(ValueError, match="frozen already.*fresh"):
            again.freeze()
    assert unchanged(model, before)


@pytest.mark.parametrize("where, value", [
    ("p", math.nan), ("n", math.nan), ("q", math.nan), ("q", math.inf), ("scale", math.nan), ("scale", -math.inf),
])  # fmt: skip
def test_a_diverged_layer_is_refused_by_name_and_not_frozen(where, value):
    model = converted()
    csq.set_temperature(model, 1.0)
    getattr(model[6].csq, where).data.view(-1)[0] = value
    before = snapshot(model)
    with pytest.raises(ValueError, match="layer 6 has diverged.*lower its learning rate"):
        csq.Budget(model, 3.0).freeze()
    assert unchanged(model, before)


def test_frozen_masks_end_the_penalty():
    model = shake(converted())
    budget = csq.Budget(model, 3.0)
    budget.freeze()
    bits, penalty = budget.bits(), budget.penalty()
    assert penalty == 0 and penalty.shape == () and not penalty.requires_grad
    assert bits == csq.report(model).total.paper_bits == csq.report(csq.harden(model)).total.paper_bits <= 3.0


# What is kept, and what it takes


@pytest.mark.parametrize("count", range(9))
def test_a_frozen_layer_has_the_kept_rows_and_no_mask_logits(count):
    planes = frozen(count).csq
    assert planes.frozen and planes.q.shape == (1, 8) and planes.available == 8
    assert planes.p.shape == planes.n.shape == (count, 200) and int(planes.open.sum()) == count
    assert {name for name, _ in planes.named_parameters()} == {"q", "scale", "p", "n"}
    assert set(planes.state_dict()) == {"q", "scale", "p", "n", "beta", "mask"}
    kept = planes.open.nonzero().flatten().tolist()
    assert planes.place.tolist() == [2.0**b for b in kept] and len(kept) == count
    assert all(t.abs().eq(0.5).all() for t in (planes.p, planes.n))


def bytes_of(model, optimizer):
    """Bytes of parameters, gradients and momentum of a model's planes; of one trained and stepped once."""
    own = [p for planes in layers_of(model).values() for p in planes.parameters()]
    return sum(t.nbytes for p in own for t in (p, p.grad, *optimizer.state[p].values()))


def step_once(model):
    optimizer = torch.optim.SGD(csq.parameter_groups(model, 0.01), momentum=0.9)
    model(torch.randn(2, model.in_features)).sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("masks, logits", [("free", 8), ("ordered", 1)])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_memory_falls_with_the_planes_kept(count, masks, logits):
    layer = converted(nn.Linear(100, 20), masks=masks)
    csq.set_temperature(layer, 1.0)
    searching = bytes_of(layer, step_once(layer))
    assert searching == 192 * 2000 + 3 * 4 * (logits + 1)  # beside the bit logits: masks or a precision, and a scale
    csq.Budget(layer, count).freeze()
    csq.set_temperature(layer, 1.0)
    assert bytes_of(layer, step_once(layer)) == 192 * 2000 * count // 8 + 3 * 4 + 2 * 4 * 8


def test_the_old_planes_give_their_memory_back_though_an_old_optimizer_holds_them():
    layer = converted(nn.Linear(100, 20))
    old = [layer.csq.q, layer.csq.p, layer.csq.n]
    csq.set_temperature(layer, 1.0)
    layer(torch.randn(2, 100)).sum().backward()
    csq.Budget(layer, 2.0).freeze()
    with torch._C.DisableTorchFunctionSubclass():
        assert [t.untyped_storage().nbytes() for t in old] == [0, 0, 0] and all(t.grad is None for t in old)


# The same weight as with all planes there


def naive_masked(planes, beta):
    """The weight, in float64, that all N planes give when the dropped ones are masked out."""
    total = torch.zeros(planes.shape.numel(), dtype=torch.float64)
    rows = iter(zip(planes.p.detach().double(), planes.n.detach().double()))
    for b in range(planes.available):
        if planes.mask[b] > 0:
            p, n = next(rows)
            f, g = (torch.sigmoid(beta * x) if math.isfinite(beta) else (x > 0).double() for x in (p, n))
            total += 2**b * (f - g)
    opened = math.tanh(beta / 4)
    return planes.scale.detach().double() / (2**planes.available - 1) / opened * total


def all_rows(planes):
    """p and n with eight rows: those dropped are closed gates."""
    whole = torch.full((2, planes.available, planes.shape.numel()), -0.5)
    for full, kept in zip(whole, (planes.p, planes.n)):
        full[planes.open] = kept.detach()
    return whole.unbind()


@pytest.mark.parametrize("count", [0, 1, 3, 8])
@pytest.mark.parametrize("beta", [1.0, 30.0, math.inf])
def test_a_frozen_weight_is_that_of_all_planes_with_the_dropped_ones_masked(count, beta):
    layer = shake(frozen(count), seed=4)
    planes = layer.csq
    csq.set_temperature(layer, beta)
    expected = naive_masked(planes, beta)
    size = float(planes.scale.detach().abs()) + 1e-9
    assert torch.allclose(layer.weight.flatten().double(), expected, rtol=0, atol=1e-5 * size)
    p, n = (t.requires_grad_() for t in all_rows(planes))
    whole = PlaneSum.apply(p, n, planes.q, planes.scale, torch.ones(8), math.inf if planes.hard else planes.beta)
    assert torch.allclose(whole, layer.weight.flatten(), rtol=1e-6, atol=1e-7 * size)
    assert math.isfinite(beta) or torch.equal(whole, layer.weight.flatten())  # sums of integers have no order
    upstream = torch.randn(200)
    full = torch.autograd.grad(whole, (p, n), upstream)
    own = torch.autograd.grad(layer.weight.flatten(), (planes.p, planes.n), upstream)
    for a, b in zip(full, own):
        assert torch.allclose(a[planes.open], b, rtol=1e-5, atol=1e-6 * size)


def test_training_goes_on_from_the_freeze():
    model = nn.Sequential(converted(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))
    csq.Budget(model, 3.0).freeze()
    x, y = torch.randn(30, 6), torch.arange(30) % 3
    optimizer = torch.optim.SGD(csq.parameter_groups(model, 0.1), momentum=0.9)
    assert {group["name"] for group in optimizer.param_groups} == {
        "bit logits", "scale, |W| = 48", "norms and biases", "float weights"}  # fmt: skip
    before, losses = csq.harden(model)[0].weight.clone(), []
    for step in range(60):
        csq.set_temperature(model, csq.temperature(step / 60))
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0] and not torch.equal(csq.harden(model)[0].weight, before)
