"""The relaxed weight: against a naive loop, plain autograd and finite differences, soft and hard."""

import math

import pytest
import torch
from conftest import codes_of, converted, set_codes, shake
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import csq_mini as csq
from csq_mini.planes import Planes, PlaneSum
from csq_mini.relaxed import CHUNK, gain

BETAS = [0.5, 1.0, 7.0, 50.0, 200.0]
KEPT = {"free": None, "ordered": None, "all": (0, 8), "middle": (2, 6), "top": (7, 8), "none": (8, 8)}
"""Planes from low to high - 1, of eight; None where masks still choose, free ones or ordered."""


def cut(kind, planes):
    """The kept planes of a kind, in a layer with fewer planes than eight."""
    kept = KEPT[kind]
    return None if kept is None else (min(kept[0], planes - (kind == "top")), min(kept[1], planes))


def naive_weight(p, n, q, scale, beta, planes, low=0):
    """The relaxed weight, one plane after the other, as the paper writes it (times the documented gain)."""
    def gate(x, beta=beta):
        return (x > 0).double() if beta == math.inf else torch.sigmoid(beta * x)

    p, n, scale = p.double(), n.double(), scale.double()
    total = torch.zeros(p.shape[1], dtype=torch.float64)
    for b in range(len(p)):
        if q.ndim == 0:  # the precision: plane N - 1 is the first to open, and softly
            m = gate(q.double() - (planes - b) + 0.5, beta ** (2 / 3))
        else:
            m = gate(q[b].double()) if q.ndim == 1 else 1
        total = total + 2 ** (low + b) * (gate(p[b]) - gate(n[b])) * m
    return scale / (2**planes - 1) * gain(scale.new_tensor(beta), q.ndim == 1) * total


def fused_weight(p, n, q, scale, beta, planes, low=0):
    """The library's own sum, given what a layer gives it."""
    mask = torch.zeros(planes).index_fill(0, torch.arange(low, low + len(p)), float(q.ndim == 2))
    return PlaneSum.apply(p, n, q, scale, mask.to(p), beta if beta == math.inf else p.new_tensor(beta))


def inputs(planes, count, seed, kind="free", dtype=torch.float64, grad=False):
    """Random p, n, q and scale of a layer, and its lowest plane."""
    generator = torch.Generator().manual_seed(seed)
    kept = cut(kind, planes)
    low, high = kept or (0, planes)
    sizes = ((high - low, count), (high - low, count), () if kind == "ordered" else (planes,), ())
    p, n, q, scale = (torch.randn(s, generator=generator, dtype=dtype) for s in sizes)
    q = q + planes / 2 if kind == "ordered" else q if kept is None else q[None]
    tensors = p, n, q, scale
    return *(t.requires_grad_(grad) for t in tensors), low


@given(st.integers(1, 8), st.integers(0, 7), st.integers(0, 99), st.sampled_from(list(KEPT)),
       st.sampled_from([*BETAS, math.inf]))  # fmt: skip
def test_the_fused_sum_equals_a_naive_loop_over_planes(planes, count, seed, kind, beta):
    p, n, q, scale, low = inputs(planes, count, seed, kind)
    expected = naive_weight(p, n, q, scale, beta, planes, low)
    assert torch.allclose(fused_weight(p, n, q, scale, beta, planes, low), expected, rtol=1e-12, atol=1e-12)
    single = fused_weight(p.float(), n.float(), q.float(), scale.float(), beta, planes, low)
    size = expected.abs().max() if count else 1.0
    assert single.dtype == torch.float32
    assert beta == math.inf or torch.allclose(single.double(), expected, rtol=0, atol=1e-3 * float(size) + 1e-4)


@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 77])
def test_a_weight_of_several_chunks_is_that_of_one(count):
    p, n, q, scale, _ = inputs(2, count, 0, dtype=torch.float32)
    whole = fused_weight(p, n, q, scale, 3.0, 2)
    assert whole.shape == (count,)
    for place in (0, CHUNK - 2, count - 1):
        part = fused_weight(p[:, place : place + 1], n[:, place : place + 1], q, scale, 3.0, 2)
        assert torch.allclose(whole[place], part, rtol=1e-5)


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("beta", [0.5, 1.0, 7.0])
def test_gradients_agree_with_finite_differences(kind, beta):
    *tensors, low = inputs(3, 4, 1, kind, grad=True)
    assert torch.autograd.gradcheck(lambda *t: fused_weight(*t, beta, 3, low), tensors)


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("beta", BETAS)
def test_gradients_agree_with_plain_autograd(kind, beta):
    *tensors, low = inputs(8, 5, 2, kind, grad=True)
    upstream = torch.randn(5, dtype=torch.float64)
    given = list(tensors)
    ours = torch.autograd.grad(fused_weight(*tensors, beta, 8, low), given, upstream)
    plain = torch.autograd.grad(naive_weight(*tensors, beta, 8, low), given, upstream, materialize_grads=True)
    for a, b in zip(ours, plain):
        near = beta * torch.finfo(torch.float64).eps  # a gate's slope never falls below that
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=100 * near)


@pytest.mark.parametrize("kind", ["free", "ordered", "middle"])
def test_hard_gates_pass_no_gradient_but_to_the_scale(kind):
    *tensors, low = inputs(8, 5, 3, kind, grad=True)
    weight = fused_weight(*tensors, math.inf, 8, low)
    *logits, by_scale = torch.autograd.grad(weight.sum(), tensors)
    assert not any(g.any() for g in logits)
    assert by_scale.item() == pytest.approx((weight.sum() / tensors[3]).item(), rel=1e-12)


def test_a_logit_of_exactly_zero_is_a_closed_gate():
    layer = converted(nn.Linear(3, 2), masks="free")
    planes = layer.csq
    with torch.no_grad():
        planes.p[:, :], planes.n[:, :] = 1.0, 0.0
        planes.p[3, 0] = 0.0
        planes.p[2, 0] = -0.0
        planes.q[7] = 0.0
    assert torch.equal(layer.weight.flatten(), planes.scale / 255 * torch.tensor([127 - 8 - 4] + [127] * 5))
    assert planes.open.tolist() == [True] * 7 + [False]


@pytest.mark.parametrize("precision, kept", [(0.49, 0), (0.5, 0), (0.51, 1), (3.0, 3), (3.5, 3), (3.51, 4), (99.0, 8)])
def test_an_ordered_layer_keeps_as_many_planes_as_its_precision_rounds_to(precision, kept):
    layer = shake(converted(nn.Linear(30, 20)))
    layer.csq.q.data.fill_(precision)
    assert layer.csq.open.tolist() == [False] * (8 - kept) + [True] * kept
    assert torch.equal(layer.csq.gates, layer.csq.open.float())
    assert not (codes_of(layer.csq) % 2 ** (8 - kept)).any()


@pytest.mark.parametrize("beta", [1.0, 10.0, 200.0])
def test_ordered_planes_open_from_the_highest_down(beta):
    planes = converted(nn.Linear(3, 2)).csq
    planes.set_beta(beta)
    before = torch.zeros(8)
    for precision in torch.linspace(0, 9, 37):
        planes.q.data.copy_(precision)
        gates = planes.gates.detach()
        assert (gates.diff() >= 0).all() and (gates >= before).all()  # plane 7 first, and none ever closes again
        before = gates


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["ordered", "free", "frozen"])
def test_at_infinity_the_weight_is_one_product_of_step_and_integer(seed, kind):
    layer = shake(converted(nn.Conv2d(4, 6, 3), masks="free" if kind == "free" else "ordered"), seed)
    if kind == "frozen":
        csq.Budget(layer, 3.0).freeze()
        shake(layer, seed)
    expected = (layer.csq.scale / 255) * codes_of(layer.csq).float()
    assert torch.equal(layer.weight.flatten(), expected)
    csq.set_temperature(layer, 2.0)
    assert torch.equal(layer.csq(hard=True).flatten(), expected)


@pytest.mark.parametrize("kind", ["free", "frozen"])
@pytest.mark.parametrize("beta", BETAS)
def test_a_new_layer_has_the_same_weight_at_every_temperature(beta, kind):
    layer = converted(nn.Linear(30, 20), masks="free")
    if kind == "frozen":
        csq.Budget(layer, 8.0).freeze()
    hard = layer.weight.detach()
    csq.set_temperature(layer, beta)
    assert torch.allclose(layer.weight, hard, rtol=2e-6, atol=2e-6 * float(hard.abs().max()))


@pytest.mark.parametrize("beta, steps", [(1.0, 4.0), (10.0, 0.2), (200.0, 0.01)])
def test_a_new_ordered_layer_has_its_weight_within_some_steps_of_the_lowest_plane(beta, steps):
    layer = converted(nn.Linear(30, 20))  # its lowest planes are not wide open while the gates are soft
    hard = layer.weight.detach()
    csq.set_temperature(layer, beta)
    assert ((layer.weight - hard).abs().max() / (layer.csq.scale / 255)) <= steps


@pytest.mark.parametrize("masked", [False, True])
def test_the_gain_falls_to_one(masked):
    values = [float(gain(torch.tensor(beta), masked)) for beta in (*BETAS, 1e4, math.inf)]
    assert values == sorted(values, reverse=True) and values[-1] == 1.0 == values[-2] < values[1]


def saved_bytes(layers):
    """Bytes that computing each layer's weight keeps for the backward pass, its own state aside."""
    own = {t.untyped_storage().data_ptr() for layer in layers for t in (*layer.parameters(), *layer.buffers())}
    saved = {}

    def note(t):
        if t.untyped_storage().data_ptr() not in own:
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        weights = [layer.weight for layer in layers]  # alive, so that no storage is reused
    return sum(saved.values()) * bool(weights)


class Unfused(nn.Linear):
    """Computes its weight by one operation a plane."""

    @property
    def weight(self):
        return self.planes[0].sigmoid() * 2 - self.planes[1].sigmoid()


@pytest.mark.parametrize("beta", [1.0, 200.0, math.inf])
@pytest.mark.parametrize("kind", ["ordered", "free", "frozen"])
def test_backward_keeps_nothing_but_the_layers_own_state(beta, kind):
    model = shake(converted(masks="free" if kind == "free" else "ordered"))
    if kind == "frozen":
        csq.Budget(model, 3.0).freeze()
    csq.set_temperature(model, beta)
    assert saved_bytes([m for m in model if hasattr(m, "csq")]) == 0


def test_an_unfused_sum_would_be_noticed():
    layer = nn.Module.__new__(Unfused)
    nn.Module.__init__(layer)
    layer.planes = nn.Parameter(torch.randn(2, 50))
    assert saved_bytes([layer]) == 2 * 50 * 4


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
def test_every_integer_that_the_planes_hold_can_be_their_weight(planes):
    codes = torch.arange(-(2**planes) + 1, 2**planes)
    for masks, lowest in (("free", {0.5}), ("ordered", {float(planes)})):
        layer = Planes(codes.float(), planes, masks)  # the scale is the largest code, so that the step is 1
        assert torch.equal(layer(), codes.float()) and torch.equal(codes_of(layer), codes)
        assert {t.abs().item() for logits in (layer.p, layer.n) for t in logits.flatten()} == {0.5}
        assert {t.item() for t in layer.q.detach().flatten()} == lowest
    shuffled = codes[torch.randperm(len(codes))]
    set_codes(layer, shuffled)
    assert torch.equal(layer(), shuffled.float())


@pytest.mark.parametrize("masks, logits", [("ordered", ()), ("free", (5,))])
def test_the_planes_of_a_layer_say_what_they_are(masks, logits):
    planes = converted(nn.Linear(3, 2), 5, masks).csq
    assert (planes.available, planes.frozen, planes.hard, planes.mask.tolist()) == (5, False, True, [0] * 5)
    assert planes.open.tolist() == [True] * 5 and planes.shape == (2, 3) and planes.ordered is (masks == "ordered")
    assert {name: tuple(p.shape) for name, p in planes.named_parameters()} == {
        "q": logits, "scale": (), "p": (5, 6), "n": (5, 6)}  # fmt: skip
    assert set(planes.state_dict()) == {"q", "scale", "p", "n", "beta", "mask"}


def test_a_float_weight_that_is_refused_changes_nothing():
    planes = shake(converted(nn.Linear(3, 2))).csq
    before = {k: v.clone() for k, v in planes.state_dict().items()}
    with pytest.raises(ValueError, match="1 of 6 weights are NaN"):
        planes.load_float(torch.tensor([[1.0, math.nan, 0], [0, 0, 0]]))
    assert all(torch.equal(v, before[k]) for k, v in planes.state_dict().items())


@pytest.mark.parametrize("untrained", [False, True])
def test_planes_are_trained_where_the_weight_was(untrained):
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad_(not untrained)
    for step in (csq.convert, lambda m: csq.Budget(m, 2.0).freeze()):
        step(layer)
        assert all(p.requires_grad is not untrained for p in layer.csq.parameters())
    assert csq.harden(layer).weight.requires_grad is not untrained
