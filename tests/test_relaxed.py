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


# Derivatives of derivatives, and transforms


def small_net():
    model = converted(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), 4)
    return shake(model)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("beta", [2.0, float("inf")])
def test_second_derivatives_agree_with_finite_differences(beta, frozen):
    layer = shake(converted(nn.Linear(2, 2).double(), 3))
    if frozen:
        csq.Budget(layer, 2.0).freeze()
        shake(layer)
    csq.set_temperature(layer, beta)
    names, parameters = zip(*layer.csq.named_parameters())

    def weight(*values):
        return torch.func.functional_call(layer.csq, dict(zip(names, values)), (), strict=False)

    if beta == 2.0:
        assert torch.autograd.gradgradcheck(weight, parameters)
    first = torch.autograd.grad(layer.csq().pow(3).sum(), parameters, create_graph=True)
    plain = torch.autograd.grad(layer.csq().pow(3).sum(), parameters)
    assert all(torch.allclose(a, b) for a, b in zip(first, plain))


def test_a_hessian_vector_product_is_that_of_the_naive_weight():
    model, x = small_net(), torch.randn(5, 3).double()
    csq.set_temperature(model, 1.5)
    parameters = list(model.parameters())
    for ahead in (False, True):
        with computed_ahead(model) if ahead else torch.enable_grad():
            loss = model(x).square().sum()
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        product = torch.autograd.grad(sum(g.square().sum() for g in gradients), parameters)
        size = 1e-6
        with torch.no_grad():
            for p, g in zip(parameters, gradients):
                p.add_(g, alpha=size)
        moved = torch.autograd.grad(model(x).square().sum(), parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients):
                p.sub_(g, alpha=size)
        for twice, before, after in zip(product, gradients, moved):  # the gradient of |g|^2 is 2 H g
            assert torch.allclose(twice, 2 * (after - before) / size, rtol=1e-3, atol=1e-3 * float(twice.abs().max()))


def test_gradients_for_each_sample_by_vmap():
    model, x = small_net(), torch.randn(5, 3).double()
    csq.set_temperature(model, 1.5)
    parameters = dict(model.named_parameters())

    def loss(values, sample):
        return torch.func.functional_call(model, values, (sample[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i in range(5):
        alone = torch.autograd.grad(model(x[i : i + 1]).square().sum(), list(parameters.values()))
        assert all(torch.allclose(each[name][i], g) for name, g in zip(parameters, alone))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_an_ensemble_by_vmap():
    models = [shake(converted(nn.Sequential(nn.Linear(3, 2))), seed).eval() for seed in range(3)]
    for model in models:
        csq.set_temperature(model, 2.0)
    parameters, buffers = torch.func.stack_module_state(models)
    x = torch.randn(4, 3)

    def call(values, state):
        return torch.func.functional_call(models[0], (values, state), (x,))

    assert torch.allclose(torch.func.vmap(call)(parameters, buffers), torch.stack([m(x) for m in models]), atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_whole_hessian_by_forward_over_reverse():
    layer = shake(converted(nn.Linear(1, 1, bias=False).double(), 2))
    csq.set_temperature(layer, 1.0)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def square(values):
        return torch.func.functional_call(layer, values, (torch.ones(1, 1).double(),)).square().sum()

    forward, reverse = torch.func.hessian(square)(parameters), torch.func.jacrev(torch.func.jacrev(square))(parameters)
    assert all(torch.allclose(forward[a][b], reverse[a][b]) for a in parameters for b in parameters)
