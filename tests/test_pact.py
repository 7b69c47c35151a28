"""One activation of few bits: exact levels, and gradients against plain autograd and equation 1."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import conv_net, levels_of, same_values
from hypothesis import given
from hypothesis import strategies as st

from csq_mini.activations import LEAST_CLIP, PACT, check_activation_bits, quantize_activations


@given(bits=st.integers(1, 8), clip=st.floats(LEAST_CLIP, 1e4), seed=st.integers(0, 99))
def test_outputs_are_the_nearest_of_exactly_2_to_the_bits_levels(bits, clip, seed):
    pact = PACT(bits, clip)
    levels = levels_of(pact)
    x = torch.randn(500, generator=torch.Generator().manual_seed(seed)) * clip
    y = pact(x).detach()
    assert len(levels.unique()) == 2**bits and torch.isin(y, levels).all()
    assert torch.equal(pact(levels), levels)  # every level is its own, so all of them occur
    assert (y - x.clamp(0, pact.alpha.item())).abs().max() <= levels[1] / 2 * (1 + 1e-4)


def plain_pact(x, alpha, levels):
    """PACT as torch computes it alone: clip, round, and a detached difference for the straight-through step."""
    clipped = torch.where(x >= alpha, alpha, F.relu(x))
    rounded = torch.round(clipped * levels / alpha) * alpha / levels
    return clipped + (rounded - clipped).detach()


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_outputs_and_gradients_are_those_of_plain_autograd(bits):
    pact = PACT(bits, 1.7).double()
    edges = torch.tensor([-1.7, -0.0, 0.0, pact.alpha.item(), 1.7000001, 1.6999999, 1e9], dtype=torch.float64)
    x = torch.cat([torch.randn(200, dtype=torch.float64) * 2, edges]).requires_grad_()
    upstream = torch.randn_like(x)
    y, expected = pact(x), plain_pact(x, pact.alpha, 2**bits - 1)
    assert torch.allclose(y, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(out, (x, pact.alpha), upstream) for out in (y, expected))
    assert torch.equal(ours[0], theirs[0]) and torch.allclose(ours[1], theirs[1], rtol=1e-12)
    assert ours[0].count_nonzero() not in (0, len(x)) and ours[1].shape == ()


def test_at_the_clip_itself_the_gradient_goes_to_alpha():
    pact, x = PACT(4, 2.0), torch.tensor([-1.0, 0.0, 1.0, 2.0, 3.0], requires_grad=True)
    pact(x).backward(torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0]))
    assert x.grad.tolist() == [0, 0, 100, 0, 0] and float(pact.alpha.grad) == 11000


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_second_derivatives_and_vmap_are_those_of_plain_autograd():
    pact, x = PACT(3, 1.0).double(), torch.randn(5, 7, dtype=torch.float64, requires_grad=True)

    def loss(alpha, x):
        return torch.func.functional_call(pact, {"alpha": alpha}, (x,)).square().sum()

    def second(function, alpha):
        first = torch.autograd.grad(function(x, alpha).square().sum(), (x, alpha), create_graph=True)
        return torch.autograd.grad(first[0].sum() + first[1], (x, alpha))

    ours = second(lambda x, alpha: torch.func.functional_call(pact, {"alpha": alpha}, (x,)), pact.alpha)
    for a, b in zip(ours, second(lambda x, alpha: plain_pact(x, alpha, 7), pact.alpha)):
        assert torch.allclose(a, b, rtol=1e-12) and a.any()
    grad, x = torch.func.grad(loss, argnums=(0, 1)), x.detach()
    alphas = torch.rand(5, dtype=torch.float64) + 0.5
    for dims, rows in (((None, 0), [(alphas[0], row) for row in x]), ((0, 0), list(zip(alphas, x)))):
        per_row = torch.func.vmap(grad, in_dims=dims)(alphas[0] if dims[0] is None else alphas, x)
        for i, pair in enumerate(rows):
            assert all(torch.allclose(a[i], b, rtol=1e-12) for a, b in zip(per_row, grad(*pair)))


@pytest.mark.parametrize("bits", [2, 8])
def test_gradients_are_the_slopes_of_equation_1(bits):
    def clipped(x, alpha):
        return (0.5 * (x.abs() - (x - alpha).abs() + alpha) * weights).sum()

    pact, h = PACT(bits, 0.9).double(), 1e-6
    x = (torch.linspace(-2, 2, 41, dtype=torch.float64) + 0.013).requires_grad_()  # no kink within h
    weights = torch.linspace(1, 3, 41, dtype=torch.float64)
    (pact(x) * weights).sum().backward()
    alpha = pact.alpha.detach()
    slope = (clipped(x.detach(), alpha + h) - clipped(x.detach(), alpha - h)) / (2 * h)
    assert float(pact.alpha.grad) == pytest.approx(float(slope), rel=1e-6)
    slopes = torch.stack([(clipped(x.detach() + step, alpha) - clipped(x.detach() - step, alpha)) / (2 * h)
                          for step in h * torch.eye(41, dtype=torch.float64)])  # fmt: skip
    assert torch.allclose(x.grad, slopes, atol=1e-6)


def test_nan_stays_and_infinity_is_clipped():
    pact = PACT(4, 2.0)
    y = pact(torch.tensor([math.nan, math.inf, -math.inf]))
    assert y[0].isnan() and y[1] == levels_of(pact)[-1] and y[2] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [4, 8])
def test_half_precision_inputs_are_quantized_in_float32(bits, dtype):
    pact, x = PACT(bits, 1.3), (torch.randn(400) * 1.5).to(dtype).requires_grad_()
    wide, upstream = x.detach().float().requires_grad_(), torch.randn(400).to(dtype)
    y = pact(x)
    assert same_values(y, pact(wide).to(dtype))
    ours = torch.autograd.grad(y, (x, pact.alpha), upstream)
    theirs = torch.autograd.grad(pact(wide), (wide, pact.alpha), upstream.float())
    assert same_values(ours[0], theirs[0].to(dtype)) and torch.allclose(ours[1], theirs[1], rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, -3.0])
def test_a_clip_at_or_below_zero_gives_numbers_and_can_come_back(alpha):
    pact, x = PACT(3), torch.tensor([-1.0, 0.0, 0.5, 2.0])
    pact.alpha.data.fill_(alpha)
    assert torch.allclose(pact(x), torch.tensor([0, 0, LEAST_CLIP, LEAST_CLIP]))
    optimizer = torch.optim.SGD([pact.alpha], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        (pact(x) - x.relu()).square().sum().backward()
        optimizer.step()
    assert pact.alpha > 1


@pytest.mark.parametrize("bits", [0, 9, 32, 2.0, True, "4", None])
def test_other_bits_are_refused(bits):
    for call in (check_activation_bits, PACT, lambda b: quantize_activations(conv_net(), b)):
        with pytest.raises(ValueError, match=f"from 1 to 8, got {bits!r}"):
            call(bits)


@pytest.mark.parametrize("clip", [0, -1.0, math.inf, math.nan, "6", True, None])
def test_other_clips_are_refused(clip):
    with pytest.raises(ValueError, match=f"clip must be a finite number of at least 0.001, got {clip!r}"):
        PACT(4, clip)


def test_channels_last_keeps_the_values_and_the_format():
    pact, x = PACT(3, 1.0), torch.randn(2, 4, 5, 5)
    y = pact(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last) and torch.equal(y, pact(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_levels_and_gradients():
    model, x = conv_net().cuda(), torch.randn(4000) * 2
    quantize_activations(model, 3, clip=2.0)
    assert all(m.alpha.is_cuda for m in model.modules() if isinstance(m, PACT))
    model(torch.randn(2, 1, 8, 8, device="cuda")).sum().backward()
    here, there = PACT(4, 1.9), PACT(4, 1.9).cuda()
    y = there(x.cuda())
    assert torch.equal(y.cpu(), here(x))
    y.sum().backward()
    here(x).sum().backward()
    assert torch.equal(there.alpha.grad.cpu(), here.alpha.grad)
