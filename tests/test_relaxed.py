"""Weights that are computed ahead, all at once, are those that the layers compute one by one."""

import pytest
import torch
from conftest import conv_net, converted, layers_of, shake
from torch import nn

import csq_mini as csq
from csq_mini.planes import computed_ahead


def trained_once(ahead, frozen, beta):
    """Outputs, and the gradients of every parameter, of one pass."""
    torch.manual_seed(0)
    model = shake(converted(conv_net()))
    if frozen:
        csq.Budget(model, 3.0).freeze()
    csq.set_temperature(model, beta)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    if ahead:
        with computed_ahead(model):
            y = model(x)
    else:
        y = model(x)
    y.square().sum().backward()
    return y, {name: p.grad for name, p in model.named_parameters()}, model


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("beta", [1.0, 50.0, float("inf")])
def test_outputs_and_gradients_are_equal_to_the_bit(frozen, beta):
    (y, grads, _), (z, others, _) = (trained_once(ahead, frozen, beta) for ahead in (True, False))
    assert torch.equal(y, z)
    assert all(torch.equal(grad, others[name]) for name, grad in grads.items())
    assert any(grad.any() for grad in grads.values())


def test_nothing_is_left_behind_even_after_an_error():
    model = converted()
    csq.set_temperature(model, 2.0)
    with pytest.raises(KeyError), computed_ahead(model):
        assert all(planes.ahead is not None for planes in layers_of(model).values())
        raise KeyError
    assert all(planes.ahead is None for planes in layers_of(model).values())


def test_a_changed_layer_shows_only_after_the_block():
    model = converted(nn.Sequential(nn.Linear(3, 2)))
    csq.set_temperature(model, 2.0)
    with computed_ahead(model):
        before = model[0].weight.detach().clone()
        with torch.no_grad():
            model[0].csq.scale.mul_(2)
        assert torch.equal(model[0].weight, before)
    assert torch.equal(model[0].weight, 2 * before)


def test_a_layer_that_is_not_used_gets_no_gradient():
    model = converted(nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)]))
    csq.set_temperature(model, 2.0)
    with computed_ahead(model):
        model[0](torch.ones(1, 3)).sum().backward()
    assert model[0].csq.p.grad is not None and model[1].csq.p.grad is None
