"""The weight of a converted layer: read like any tensor, and never written into in silence."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from conftest import converted, rounded
from torch import nn

import csq_mini as csq
from csq_mini.computed import ComputedWeight

ONES = torch.ones(4, 8)


def assign(layer, value):
    layer.weight = value


def assign_data(layer):
    layer.weight.data = ONES


def assign_item(layer):
    layer.weight[0] = 1


def add(layer):
    layer.weight += 1


INITIALISERS = "zeros_ normal_ uniform_ xavier_uniform_ kaiming_normal_ trunc_normal_ orthogonal_".split()
WRITES = {
    **{f"init.{name}": lambda m, name=name: getattr(nn.init, name)(m.weight) for name in INITIALISERS},
    "init by keyword": lambda m: nn.init.constant_(tensor=m.weight, val=1.0),
    "copy_": lambda m: m.weight.copy_(ONES),
    "data.clamp_": lambda m: m.weight.data.clamp_(-0.01, 0.01),
    "data.data": lambda m: m.weight.data.data.zero_(),
    "detach": lambda m: m.weight.detach().zero_(),
    "view": lambda m: m.weight.view(-1)[3].fill_(2),
    "transposed": lambda m: m.weight.T.mul_(2),
    "one of several views": lambda m: m.weight.unbind(0)[1].zero_(),
    "foreach": lambda m: torch._foreach_mul_([m.weight], 2.0),
    "torch.clamp_": lambda m: torch.clamp_(m.weight, 0, 1),
    "out": lambda m: torch.mul(ONES, 2, out=m.weight),
    "inplace": lambda m: F.relu(m.weight, inplace=True),
    "max norm": lambda m: m.weight.data.renorm_(2, 0, 1.0),
    "set_": lambda m: m.weight.set_(ONES),
    "resize_": lambda m: m.weight.resize_(2),
    "data =": assign_data, "item =": assign_item, "+=": add,
    "weight = tensor": lambda m: assign(m, ONES),
    "weight = parameter": lambda m: assign(m, nn.Parameter(ONES)),
    "setattr": lambda m: setattr(m, "weight", ONES),
}  # fmt: skip


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
@pytest.mark.parametrize("write", WRITES)
def test_a_write_into_a_converted_weight_is_an_error_that_says_how(write, ahead):
    model = converted(nn.Sequential(nn.Linear(8, 4)))
    csq.set_temperature(model, 2.0)
    before = model[0].weight.clone()
    with csq.planes.computed_ahead(model) if ahead else torch.no_grad(), torch.no_grad():
        with pytest.raises(RuntimeError, match=r"computed from its planes.*layer.csq.load_float\(tensor\)"):
            WRITES[write](model[0])
    assert torch.equal(model[0].weight, before)


def test_numpy_gets_the_weight_read_only():
    layer = converted(nn.Linear(8, 4))
    array = layer.weight.detach().numpy()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    assert array.tolist() == layer.weight.tolist()


def test_what_is_computed_from_a_weight_is_a_plain_tensor():
    layer = converted(nn.Linear(8, 4))
    w = layer.weight
    made = (w + 1, w.clone(), w.sum(), w @ w.T, F.linear(ONES, w), layer(ONES), w.double(), copy.deepcopy(w.detach()))
    for value in made:
        assert type(value) is torch.Tensor
    other = torch.zeros(4, 8)
    other.copy_(w.detach())
    other.add_(w.detach())
    assert torch.equal(other, 2 * w)
    assert repr(w.detach()) == repr(w.detach().clone())


def test_a_weight_is_saved_as_a_plain_tensor():
    layer, file = converted(nn.Linear(8, 4)), io.BytesIO()
    torch.save(layer.weight.detach(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert type(loaded) is torch.Tensor and torch.equal(loaded, layer.weight)


def test_gradients_go_through_a_weight():
    layer = converted(nn.Linear(8, 4))
    csq.set_temperature(layer, 2.0)
    assert type(layer.weight) is ComputedWeight
    layer.weight.square().sum().backward()
    assert layer.csq.p.grad.any() and layer.csq.scale.grad.any()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("build", [
    lambda: nn.Linear(8, 4), lambda: nn.Conv2d(3, 4, 3), lambda: nn.ConvTranspose1d(2, 3, 2),
    lambda: nn.Embedding(5, 4, 0),
])  # fmt: skip
def test_reset_parameters_sets_the_planes(build, frozen):
    layer, twin = converted(build()), build()
    if frozen:
        csq.Budget(layer, 8.0).freeze()
    for module in (layer, twin):
        torch.manual_seed(3)
        module.reset_parameters()
    expected = rounded(twin).weight
    assert torch.allclose(layer.weight, expected, atol=1e-7) and torch.equal(csq.harden(layer).weight, layer.weight)
    if getattr(layer, "bias", None) is not None:
        assert torch.equal(layer.bias, twin.bias)
    with torch.no_grad(), pytest.raises(RuntimeError):
        layer.weight.zero_()


def test_load_float_sets_the_planes():
    layer, weight = converted(nn.Linear(8, 4)), torch.randn(4, 8)
    layer.csq.load_float(weight)
    assert (layer.weight - weight).abs().max() <= weight.abs().max() / 255 / 2 * 1.001
    with pytest.raises(ValueError, match=r"shape \(8, 4\), but the layer has \(4, 8\)"):
        layer.csq.load_float(weight.T)


@pytest.mark.parametrize("target", [1.0, 2.0, 8.0, None])
def test_a_hardened_weight_loaded_back_stays_as_it_is(target):
    """Also where no weight has the largest code that its planes hold."""
    model = converted(nn.Sequential(nn.Linear(8, 16)))
    if target is not None:
        csq.Budget(model, target).freeze()
    planes = model[0].csq
    with torch.no_grad():
        planes.p[-1], planes.n[-1] = -1, -1
    exact = csq.harden(model)
    model.load_state_dict(exact.state_dict())
    again = csq.harden(model)
    assert torch.equal(again[0].weight, exact[0].weight) and again[0].csq.step == exact[0].csq.step
