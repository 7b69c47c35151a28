"""The methods that CSQ is compared with: their gradients by hand, their budgets, and runs that are cut."""

import itertools
import json

import pytest
import torch
from conftest import conv_net, few_digits, same_history, same_state

import csq_mini as csq
from csq_mini.experiments.baselines import allocations, loop
from csq_mini.experiments.baselines.allocations import allocate
from csq_mini.experiments.baselines.bsq import BitPlanes
from csq_mini.experiments.baselines.learned_bits import StepAndRange
from csq_mini.experiments.baselines.quantizers import LSQ, DoReFa, attach, exact
from csq_mini.experiments.baselines.solver import cheapest, local_search
from csq_mini.targets import capacity, planes_in

RECIPE = csq.recipes.get("digits", search_epochs=2, finetune_epochs=1, recalibration_batches=1, checkpoint_steps=3)
WEIGHT = torch.tensor([0.9, -0.31, 0.08, -1.7])
SIZES = {"a": 7, "b": 31, "c": 5, "d": 100}


def run(method, folder=None, **options):
    torch.manual_seed(1)
    model, data = conv_net(), few_digits()
    planes = allocate("uniform", model, data, 2.5) if method in loop.GIVEN else None
    recipe = RECIPE.replace(target=2.5)
    return loop.run(method, model, data, recipe, planes, run_dir=folder, device="cpu", progress=False, **options)


def test_dorefa_rounds_the_tanh_and_passes_its_gradient():
    weight = WEIGHT.clone().requires_grad_()
    value = DoReFa(weight, 2)(weight)
    t = WEIGHT.tanh()
    assert torch.allclose(value, (3 * t / t.abs().max()).round() * t.abs().max() / 3)
    value.sum().backward()
    assert torch.allclose(weight.grad, 1 - t**2)


def test_lsq_has_the_gradients_of_the_paper():
    weight, part = WEIGHT.clone().requires_grad_(), LSQ(WEIGHT, 2)
    assert float(part.step.detach()) == pytest.approx(2 * float(WEIGHT.abs().mean()) / 3**0.5)
    part.step.data.fill_(0.5)
    part(weight).sum().backward()
    assert weight.grad.tolist() == [1, 1, 1, 0]  # the last is clipped
    by_hand = (2 - 1.8) + (-1 + 0.62) + (0 - 0.16) - 3
    assert float(part.step.grad) == pytest.approx(by_hand / 12**0.5, rel=1e-5)


def test_step_and_range_have_the_gradients_of_the_paper():
    weight, part = WEIGHT.clone().requires_grad_(), StepAndRange(WEIGHT, 8)
    part.log_step.data.fill_(0.5).log_()
    part.log_range.data.fill_(1.5).log_()
    assert part.kept() == 2  # log2(1.5 / 0.5 + 1)
    part(weight).sum().backward()
    assert weight.grad.tolist() == [1, 1, 1, 0]
    inside = (1.0 - 0.9) + (-0.5 + 0.31) + (0 - 0.08)
    assert float(part.log_step.grad) == pytest.approx(inside, rel=1e-4)  # d times dQ/dd
    assert float(part.log_range.grad) == pytest.approx(-1.5, rel=1e-5)


def test_bits_hold_the_weight_and_dropping_zero_planes_leaves_it():
    part = BitPlanes(WEIGHT, 8, speed=2.0)
    p, n = (t.requires_grad_() for t in part.right_inverse(WEIGHT))
    value = part(p, n)
    assert (value - WEIGHT).abs().max() <= 1.7 / 255 / 2 * 1.001
    value.sum().backward()
    assert torch.allclose(p.grad.view(8, 4)[:, 0], part.worth * 2 * 2.0 ** torch.arange(8))
    with torch.no_grad():
        p.view(8, 4)[:2], n.view(8, 4)[:2], p.view(8, 4)[7], n.view(8, 4)[7] = 0, 0, 0, 0
    before = part(p, n).detach()
    part.requantise(p, n)
    assert part.kept() == 5 and torch.equal(part(p, n), before)


@pytest.mark.parametrize("make", [DoReFa, LSQ, StepAndRange, BitPlanes])
def test_the_exact_model_computes_the_same_and_its_source_stays(make):
    model = conv_net().eval()
    attach(model, make, dict.fromkeys(["0", "3", "6", "11"], 3))
    x = few_digits().test[0].float()
    plain = exact(model)
    assert torch.equal(plain(x), model(x)) and type(plain[0]) is torch.nn.Conv2d
    for layer in csq.integers(plain).values():
        assert int(layer.codes.abs().max()) <= 2 ** len(layer.planes) - 1


@pytest.mark.parametrize("method", [*loop.GIVEN, *loop.SEARCHES])
def test_every_method_ends_packed_within_its_budget(method, tmp_path):
    result = run(method, tmp_path)
    assert method == "bsq" or result.report.total.paper_bits <= 2.5
    packed = csq.load_packed(tmp_path / "model.safetensors", conv_net())
    assert same_state(packed, result.model)
    assert result.accuracy == csq.evaluate(packed, few_digits())


@pytest.mark.parametrize("method", ["planes", "lsq", "learned-bits", "bsq"])
def test_a_run_that_was_cut_ends_the_same(method, tmp_path):
    whole, calls = run(method), itertools.count()

    def stop(outputs, targets):
        if next(calls) > 8:
            raise InterruptedError
        return torch.nn.functional.cross_entropy(outputs, targets)

    from csq_mini.train.identity import describe

    stop.csq_identity = describe(torch.nn.functional.cross_entropy)
    with pytest.raises(InterruptedError):
        run(method, tmp_path, loss=stop)
    assert (tmp_path / "checkpoint.pt").exists()
    again = run(method, tmp_path)
    assert same_state(again.model, whole.model) and same_history(again.history, whole.history)


@pytest.mark.parametrize("target", [1.0, 1.37, 2.0, 3.3])
def test_every_allocation_fits_and_ignores_the_test_images(target):
    model, data = conv_net(), few_digits(64, 20, 20)
    other = csq.data.Data(data.name, data.train, data.valid, (data.test[0] * 0, data.test[1]))
    for name in allocations.ALLOCATIONS:
        planes = allocate(name, model, data, target, 3)
        sizes = {key: model.get_submodule(key).weight.numel() for key in planes}
        assert planes_in(sizes, planes) <= capacity(target, sizes) and min(planes.values()) >= 1
        assert planes == allocate(name, model, other, target, 3)


def test_the_cheapest_planes_are_those_of_trying_all():
    generator = torch.Generator().manual_seed(0)
    for room in (150, 201, 333, 500):
        costs = {name: {k: float(torch.rand((), generator=generator)) for k in (1, 2, 3, 4)} for name in SIZES}
        choices = [dict(zip(SIZES, ks)) for ks in itertools.product((1, 2, 3, 4), repeat=4)]
        fitting = [c for c in choices if planes_in(SIZES, c) <= room]
        least = min(sum(costs[n][k] for n, k in c.items()) for c in fitting)
        found = cheapest(costs, SIZES, room)
        assert planes_in(SIZES, found) <= room
        assert sum(costs[n][k] for n, k in found.items()) == pytest.approx(least)


def test_local_search_never_ends_worse_than_its_start():
    for seed in range(20):
        weights = dict(zip(SIZES, torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()))

        def cost(planes, weights=weights):
            return sum(weights[name] * 4.0**-k for name, k in planes.items())

        start = dict.fromkeys(SIZES, 2)
        found = local_search(cost, start, SIZES, 286, 30, seed)
        assert cost(found) <= cost(start) and planes_in(SIZES, found) <= 286


def test_reproduce_takes_a_scheme_and_reads_that_of_another_row(tmp_path):
    options = {"model": "digits_cnn", "data": "digits", "target": 2.3, "results": tmp_path, "progress": False,
               "device": "cpu", "epochs": 1}  # fmt: skip
    row = csq.reproduce("round", scheme="random:17", run_dir=tmp_path / "a", **options)
    assert "round-random17-w2.3" in row.key and row.allocation == "random17" and row.paper_bits <= 2.3
    again = csq.reproduce("lsq", scheme=tmp_path / f"{row.key}.json", run_dir=tmp_path / "b", **options)
    assert again.scheme == row.scheme and json.loads((tmp_path / f"{again.key}.json").read_text())["method"] == "lsq"


@pytest.mark.parametrize("method, scheme, message", [
    ("csq", "uniform", "'csq' finds its own scheme"),
    ("lsq", "unifrm", "unknown scheme 'unifrm'; did you mean uniform"),
    ("lsq", "fisher", "measured on a trained network: give a float checkpoint"), ("ste", "random:x", "random:0"),
])  # fmt: skip
def test_a_scheme_that_does_not_fit_is_refused(method, scheme, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        csq.reproduce(method, "digits_cnn", "digits", scheme=scheme, results=tmp_path)
    assert not list(tmp_path.iterdir())
