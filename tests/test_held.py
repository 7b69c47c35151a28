"""Weights held through a search: a precision stands for what the freeze would make of it."""

import copy
import math

import pytest
import torch
from conftest import conv_net, converted, few_digits, mlp, same_state
from torch import nn

import csq_mini as csq
from csq_mini.bits import unit_step
from csq_mini.nearest import HeldWeight, nearest_grid, roundings
from csq_mini.planes import Planes, csq_layers
from csq_mini.scheme import harden_planes, nearest

RECIPE = csq.Recipe(target=3.0, search_epochs=2, finetune_epochs=1, batch_size=32, recalibration_batches=2, hold=True)


def heavy(size=400, dtype=torch.float32):
    """A weight with a few values far from the rest."""
    torch.manual_seed(0)
    weight = torch.randn(size, dtype=dtype)
    weight[::97] *= 6
    return weight


@pytest.mark.parametrize("planes", [1, 3, 8])
def test_the_nearest_grid_errs_least_of_all_that_were_tried(planes):
    weight = heavy()
    rows = roundings(weight, planes)
    assert rows.shape == (planes + 1, 400) and not rows[0].any()
    for count in range(1, planes + 1):
        error = (rows[count] - weight).square().sum()
        for scale in weight.abs().max() * torch.tensor([2 ** (-i / 8) for i in range(8)]):
            for end in range(count, planes + 1):
                step = unit_step(scale, planes) * 2 ** (end - count)
                tried = step * (weight / step).round().clamp(-(2**count) + 1, 2**count - 1)
                assert error <= (tried - weight).square().sum() * (1 + 1e-6)
    errors = (rows - weight).square().sum(1)
    assert (errors.diff() < 0).all()


def test_a_tie_takes_the_more_significant_run_at_the_larger_scale():
    assert nearest_grid(torch.zeros(3), torch.tensor(1.0), 4, 2) == (torch.tensor(1.0), 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("count", range(1, 9))
def test_at_a_whole_precision_it_is_what_the_freeze_makes_of_it(count, dtype):
    weight = heavy(dtype=dtype)
    planes = Planes(weight, 8)
    planes.hold(weight)
    planes.q.data.fill_(count)
    scheme, soft = harden_planes(planes), planes(hard=True)
    planes.set_beta(1e4)
    assert torch.equal(planes(hard=True), soft) and soft.dtype == dtype
    assert torch.allclose(planes(), soft, atol=float(weight.abs().max()) * torch.finfo(dtype).eps)
    planes.freeze(count)
    assert planes.held is None and torch.equal(harden_planes(planes).codes, scheme.codes)
    eps = torch.finfo(dtype).eps  # of which the scale takes its share
    assert torch.allclose(planes(hard=True), soft, rtol=eps, atol=float(weight.abs().max()) * eps)
    assert torch.equal(nearest(weight, count).codes, scheme.codes)


def test_between_two_precisions_it_lies_between_and_the_gradient_is_that_of_finite_differences():
    held = HeldWeight(heavy(dtype=torch.float64), 5)
    k = torch.tensor(2.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: held.at(k, torch.tensor(3.0, dtype=torch.float64)), (k,))
    rows = roundings(held.weight, 5)
    middle = held.at(torch.tensor(2.5, dtype=torch.float64), 1e3)
    assert torch.allclose(middle, (rows[2] + rows[3]) / 2)


def test_a_search_moves_precisions_alone_and_ends_as_the_float_network_rounded():
    torch.manual_seed(0)
    net, data = conv_net(), few_digits()
    start = {key: value.clone() for key, value in net.state_dict().items()}
    trainer = csq.Trainer(net, data, RECIPE)
    for _ in range(2):
        entry = trainer.epoch()
    counts = {name: int(planes.open.sum()) for name, planes in csq_layers(net).items()}
    assert set(counts.values()) != {8} and entry["bits/" + next(iter(counts))] == next(iter(counts.values()))
    for name, planes in csq_layers(net).items():
        planes.freeze(counts[name])  # where the search ended: the budget's own freeze may cut or fill
        codes = nearest(start[f"{name}.weight"], counts[name]).codes
        assert torch.equal(harden_planes(planes).codes, codes)
    assert all(torch.equal(value, start[key]) for key, value in net.named_parameters() if key in start)
    assert entry["hard"] == csq.evaluate(trainer.hardened(), data, "valid")


def test_the_freeze_of_a_held_model_needs_no_rewind():
    net, recipe = mlp(), RECIPE.replace(search_epochs=1)
    start = {key: value.clone() for key, value in net.state_dict().items()}
    trainer = csq.Trainer(net, few_digits(), recipe)
    trainer.epoch()
    counts = trainer.budget.freeze()
    assert trainer.budget.bits() <= 3
    for name, planes in csq_layers(net).items():
        assert torch.equal(harden_planes(planes).codes, nearest(start[f"{name}.weight"], counts[name]).codes)


def test_a_float_weight_that_is_loaded_ends_the_hold():
    layer = converted(nn.Linear(4, 3))
    layer.csq.hold(torch.ones(3, 4))
    layer.load_state_dict({"weight": torch.zeros(3, 4), "bias": torch.zeros(3)})
    assert layer.csq.held is None and not layer.weight.any()


def test_a_held_model_goes_to_another_device():
    layer = converted(nn.Linear(40, 10))
    layer.csq.hold(heavy().view(10, 40))
    assert layer.to("meta").csq().device.type == "meta"


def test_under_autocast_and_in_a_copy_the_weight_is_the_same():
    layer = converted(nn.Linear(40, 10))
    layer.csq.hold(heavy().view(10, 40))
    csq.set_temperature(layer, 5.0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer.csq()
    assert torch.equal(inside, layer.csq()) and torch.equal(copy.deepcopy(layer).csq(), inside)
    assert same_state(layer, copy.deepcopy(layer)) and math.isfinite(float(inside.sum()))


def test_a_held_search_is_on_the_target_at_half():
    model = converted(mlp())
    budget = csq.Budget(model, 2.0)
    assert [budget.line(at) for at in (0, 0.375, 0.75)] == [8, 5, 2]
    for planes in csq_layers(model).values():
        planes.hold(planes(hard=True))
    assert [budget.line(at) for at in (0, 0.25, 0.5, 0.9)] == [8, 5, 2, 2]


def test_free_masks_cannot_be_held():
    with pytest.raises(ValueError, match="hold=True needs masks='ordered', got masks='free'"):
        csq.Recipe(hold=True, masks="free")
    assert csq.Recipe(hold=True).hold and csq.Recipe(masks="free").masks == "free"


def test_where_nothing_is_searched_nothing_is_held():
    trainer = csq.Trainer(mlp(), few_digits(), RECIPE.replace(search_epochs=0))
    assert trainer.held is None and not any(planes.held for planes in csq_layers(trainer.model).values())


def test_the_report_says_what_the_freeze_cut():
    def lines(cut):
        found = csq.report(csq.harden(converted(mlp())))
        found.cut = cut
        return [line for line in found.summary() if "cut" in line]

    assert lines(0.0) == [] and lines(0.3) == ["the freeze cut 0.300 bits a weight that the search had left"]
    result = csq.fit(mlp(), few_digits(), RECIPE.replace(target=1.0, hold=False, search_epochs=1), progress=False)
    assert result.report.cut == result.history["cut"].iloc[-1]
