import math

import pytest
import torch
from conftest import converted, layers_of, shake
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import csq_mini as csq
import bench
from csq_mini.bits import place_values
from csq_mini.planes import PlaneSum, gain

BETAS = [0.5, 1.0, 7.0, 50.0, 200.0]


def naive_weight(p, n, q, scale, beta, mask=None):
    """The relaxed weight, one plane after the other, as the paper writes it (times the documented gain)."""
    gate = (lambda x: (x > 0).double()) if beta == math.inf else (lambda x: torch.sigmoid(beta * x))
    p, n, q, scale = (t.double() for t in (p, n, q, scale))
    total = torch.zeros(p.shape[1], dtype=torch.float64)
    for b in range(len(p)):
        m = gate(q[b]) if mask is None else (mask[b] > 0).double()
        total = total + 2**b * (gate(p[b]) - gate(n[b])) * m
    return scale / (2 ** len(p) - 1) * gain(beta, mask is not None) * total


def fused_weight(p, n, q, scale, beta, mask=None):
    """The library's own sum, given what a layer gives it."""
    at = (math.inf, 1.0) if beta == math.inf else (p.new_tensor(beta), p.new_tensor(gain(beta, mask is not None)))
    kept = [] if mask is None else mask.nonzero().flatten().tolist()
    rows = None if mask is None else slice(min(kept, default=0), max(kept, default=-1) + 1)
    return PlaneSum.apply(p, n, q, scale, place_values(len(p), p), *at, mask, rows)


def inputs(planes, count, seed, dtype=torch.float64, grad=False):
    generator = torch.Generator().manual_seed(seed)
    sizes = ((planes, count), (planes, count), (planes,), ())
    tensors = [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]
    return [t.requires_grad_(grad) for t in tensors]


def some_mask(planes, kind):
    if kind == "free":
        return None
    marks = {"hole": [1, 0, 2], "none": [0], "all": [1]}[kind]
    return torch.tensor((marks * planes)[:planes], dtype=torch.int8)


MASKS = ["free", "hole", "none", "all"]


@given(
    st.integers(1, 8),
    st.integers(0, 7),
    st.integers(0, 99),
    st.sampled_from(MASKS),
    st.sampled_from([*BETAS, math.inf]),
)
def test_fused_sum_equals_a_naive_loop_over_planes(planes, count, seed, kind, beta):
    p, n, q, scale = inputs(planes, count, seed)
    mask = some_mask(planes, kind)
    expected = naive_weight(p, n, q, scale, beta, mask)
    assert torch.allclose(fused_weight(p, n, q, scale, beta, mask), expected, rtol=1e-12, atol=1e-12)
    single = fused_weight(p.float(), n.float(), q.float(), scale.float(), beta, mask)
    size = expected.abs().max() if count else 1.0
    assert single.dtype == torch.float32
    assert beta == math.inf or torch.allclose(single.double(), expected, rtol=0, atol=1e-3 * float(size) + 1e-4)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("beta", [0.5, 1.0, 7.0])
def test_gradients_agree_with_finite_differences(kind, beta):
    p, n, q, scale = inputs(3, 4, 1, grad=True)
    mask = some_mask(3, kind)
    assert torch.autograd.gradcheck(lambda *t: fused_weight(*t, beta, mask), (p, n, q, scale))


@pytest.mark.parametrize("kind", ["free", "hole"])
@pytest.mark.parametrize("beta", BETAS)
def test_gradients_agree_with_plain_autograd(kind, beta):
    tensors, mask = inputs(8, 5, 2, grad=True), some_mask(8, kind)
    upstream = torch.randn(5, dtype=torch.float64)
    ours = torch.autograd.grad(fused_weight(*tensors, beta, mask), tensors, upstream, allow_unused=True)
    plain = torch.autograd.grad(naive_weight(*tensors, beta, mask), tensors, upstream, allow_unused=True)
    for name, a, b in zip("pnqs", ours, plain):
        b = torch.zeros_like(a) if b is None else b  # a frozen mask leaves q no gradient
        near = beta * torch.finfo(torch.float64).eps  # a gate's slope never falls below that
        assert torch.allclose(a, b, rtol=1e-9, atol=100 * near), name


def test_hard_gates_pass_no_gradient_but_to_the_scale():
    p, n, q, scale = inputs(8, 5, 3, grad=True)
    weight = fused_weight(p, n, q, scale, math.inf)
    *logits, by_scale = torch.autograd.grad(weight.sum(), (p, n, q, scale))
    assert not any(g.any() for g in logits)
    assert by_scale.item() == pytest.approx((weight.sum() / scale).item(), rel=1e-12)


def test_a_logit_of_exactly_zero_is_a_closed_gate():
    layer = converted(nn.Linear(3, 2))
    with torch.no_grad():
        layer.p[:, :], layer.n[:, :] = 1.0, 0.0
        layer.p[3, 0] = 0.0
        layer.p[2, 0] = -0.0
        layer.q[7] = 0.0
    codes = layer.codes()
    assert codes.tolist() == [127 - 8 - 4] + [127] * 5
    assert torch.equal(layer.weight.flatten(), layer.scale / 255 * codes)
    assert layer.open.tolist() == [True] * 7 + [False]


@pytest.mark.parametrize("seed", range(5))
def test_at_infinity_the_weight_is_one_product_of_step_and_integer(seed):
    layer = shake(converted(nn.Conv2d(4, 6, 3)), seed)
    expected = (layer.scale / 255) * layer.codes().float()
    assert torch.equal(layer.weight.flatten(), expected)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("beta", BETAS)
def test_a_new_layer_has_the_same_weight_at_every_temperature(beta, frozen):
    layer = converted(nn.Linear(30, 20))
    if frozen:
        csq.Budget(layer, 8.0).freeze()
    hard = layer.weight.detach()
    csq.set_temperature(layer, beta)
    assert torch.allclose(layer.weight, hard, rtol=2e-6, atol=2e-6 * float(hard.abs().max()))


def test_the_gain_falls_to_one():
    values = [gain(beta, False) for beta in (*BETAS, 1e4, math.inf)]
    assert values == sorted(values, reverse=True) and values[-1] == 1.0 == values[-2]
    assert all(gain(beta, False) == pytest.approx(float(gain(torch.tensor(beta), False)), rel=1e-5) for beta in BETAS)


@pytest.mark.parametrize("beta", [1.0, 200.0, math.inf])
@pytest.mark.parametrize("frozen", [False, True])
def test_backward_keeps_nothing_but_the_layer_s_own_state(beta, frozen):
    model = shake(converted())
    if frozen:
        csq.Budget(model, 3.0).freeze()
    csq.set_temperature(model, beta)
    assert bench.saved_bytes(list(layers_of(model).values())) == 0


@pytest.mark.parametrize("beta", [1e-60, 1e39, 1e300])
def test_finite_temperatures_beyond_float32_still_give_finite_weights(beta):
    layer = shake(converted(nn.Linear(9, 9)), zeros=0.3)
    try:
        csq.set_temperature(layer, beta)
    except ValueError as error:
        assert str(beta) in str(error)
    else:
        assert torch.isfinite(layer.weight).all()


@pytest.mark.parametrize("planes", range(1, 9))
def test_set_bits_puts_integers_in(planes):
    layer = converted(nn.Linear(2 ** (planes + 1) - 1, 1), planes)
    codes = torch.arange(-(2**planes) + 1, 2**planes).view(1, -1)
    layer.set_bits(codes)
    assert torch.equal(layer.codes(), codes.flatten())
    assert set(layer.p.abs().unique().tolist()) == {0.5}


@pytest.mark.parametrize("marks", [[0, 0, 0, 1, 2, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0, 1], [0] * 8, [1] * 8])
def test_rows_that_are_left_out_of_a_frozen_layer_would_have_added_nothing(marks):
    tensors, mask = inputs(8, 50, 3, torch.float32, grad=True), torch.tensor(marks, dtype=torch.int8)
    p, n, q, scale = tensors
    at = (place_values(8, p), torch.tensor(3.0), torch.tensor(gain(3.0, frozen=True)), mask)
    kept = mask.nonzero().flatten().tolist()
    cut = PlaneSum.apply(*tensors, *at, slice(min(kept, default=0), max(kept, default=-1) + 1))
    whole = PlaneSum.apply(*tensors, *at, None)
    assert torch.allclose(cut, whole, rtol=1e-6, atol=1e-7)
    upstream = torch.randn(50)
    for a, b in zip(torch.autograd.grad(cut, tensors, upstream), torch.autograd.grad(whole, tensors, upstream)):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-7)
