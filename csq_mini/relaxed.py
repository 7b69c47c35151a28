"""The relaxed weight: a sum of gated bit planes, and its gradients.

Source: CSQ (arXiv 2212.02770), the bi-level relaxation: gates on the bits of a weight and on the planes of a layer.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .bits import at_least_float32, place_values, unit_step
from .gates import LOGIT, gate

SOFTER = 2 / 3
"""Exponent that makes the gates of ordered masks softer than those of bits."""

CHUNK = 2**17  # weights computed at a time, so that what is needed in passing stays small


def gain(beta: Tensor, masked: bool) -> Tensor:
    """What a step is multiplied by at ``beta``, so that the weight of a new layer is the same at every temperature.

    All logits start at +-0.5. At a finite temperature an open bit then counts f(0.5) - f(-0.5) = tanh(beta / 4), and
    an open free mask f(0.5). Dividing by both leaves the network as it was, with or without batch norm. A frozen mask
    is constant, and ordered ones start wide open, but for the lowest; these need no gain (``masked=False``).
    Continuous sparsification (arXiv 1912.04427) divides likewise.
    """
    (beta,) = at_least_float32(beta)
    open_bit = torch.tanh(beta * (LOGIT / 2))
    return (1 + torch.exp(-beta * LOGIT)) / open_bit if masked else 1 / open_bit


def places(mask: Tensor, rows: int) -> Tensor:
    """The place values 2^b of a layer's ``rows`` planes, ``[rows]``: those that its mask keeps lie in one run."""
    low = (mask > 0.5).int().argmax()  # 0 until the freeze, when all planes are there
    return place_values(rows, at_least_float32(mask)[0], low)


def plain_sum(p: Tensor, n: Tensor, q: Tensor, scale: Tensor, mask: Tensor, beta: Tensor | float) -> Tensor:
    """The relaxed weight, flat ``[numel]``, as autograd would compute it: all derivatives, at 64 bytes a weight.

    weight = step0 * gain * sum_b 2^b [f(p_b) - f(n_b)] f(q_b), without f(q_b) once frozen, when ``q`` is ``[1, N]``.
    """
    p, n, scale = at_least_float32(p, n, scale)
    with no_autocast(p):
        step = unit_step(scale, len(mask)) * _gain(q, beta)
        return step * (_worth(p, q, mask, beta) @ (gate(p, beta) - gate(n, beta)))


def _worth(p: Tensor, q: Tensor, mask: Tensor, beta: Tensor | float) -> Tensor:
    """What each plane is worth, its gate included, ``[rows]``."""
    if q.ndim == 2:
        return places(mask, len(p))
    (q,) = at_least_float32(q)
    return place_values(len(mask), q) * plane_gates(q, len(mask), beta)


def plane_logits(q: Tensor, planes: int) -> Tensor:
    """The logit of each plane's gate, ``[N]``, before the freeze: free mask logits, or those of a precision.

    Free masks have one of their own, and ``q`` holds them. A layer with ordered masks has one number, its precision k:
    planes open from the highest down, one for each unit of k, as a thermometer rises. The j-th of them (from 1) has
    the logit k - j + 1/2, so that k rounded is the number of planes open.
    """
    if q.ndim:
        return q
    nth = planes - torch.arange(planes, dtype=q.dtype, device=q.device)
    return q - nth + 0.5


def plane_gates(q: Tensor, planes: int, beta: Tensor | float) -> Tensor:
    """How far each plane is open before the freeze, ``[N]``."""
    return gate(plane_logits(q, planes), beta if q.ndim else ordered_beta(beta))


def ordered_beta(beta: Any) -> Any:
    """The temperature of ordered masks when that of the bits is ``beta``.

    The loss moves a precision only through gates that are neither open nor closed. Softer gates let it say for longer,
    and for more layers at a time, which plane is worth its size; with those of the bits the choice was poorer.
    """
    return beta**SOFTER


def _gain(q: Tensor, beta: Tensor | float) -> Tensor | float:
    """The gain; 1 with hard gates, for which beta is a float."""
    return 1.0 if isinstance(beta, float) else gain(beta, masked=q.ndim == 1)


def fused_sum(p: Tensor, n: Tensor, q: Tensor, scale: Tensor, mask: Tensor, beta: Tensor | float) -> Tensor:
    """:func:`plain_sum` with few passes through memory, and no gradient.

    The sum comes first, in float32 at least: with hard gates it is an integer, and one product makes it a weight.
    """
    (scale,) = at_least_float32(scale)
    with no_autocast(p):
        worth = _worth(p, q, mask, beta)
        parts = zip(p.split(CHUNK, 1), n.split(CHUNK, 1)) if p.shape[1] > CHUNK else [(p, n)]
        wide = (at_least_float32(*part) for part in parts)  # [rows, CHUNK] twice
        sums = [torch.mv(gate(a, beta).sub_(gate(b, beta)).t(), worth) for a, b in wide]
        return unit_step(scale, len(mask)) * _gain(q, beta) * (torch.cat(sums) if len(sums) > 1 else sums[0])


class PlaneSum(torch.autograd.Function):
    """:func:`fused_sum` with a gradient, for which it stores nothing but its own inputs.

    The backward pass computes the gates again, because keeping them would take 64 bytes a weight.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, beta = inputs
        ctx.hard = isinstance(beta, float)  # else it is a tensor, saved with the rest
        ctx.save_for_backward(*tensors, *(() if ctx.hard else (beta,)))
        return fused_sum(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs: Any = (*ctx.saved_tensors, math.inf) if ctx.hard else ctx.saved_tensors
        return *_gradients(grad, *inputs), None, None


def _gradients(grad: Tensor, *inputs: Any) -> tuple[Tensor | None, ...]:
    """By p, n, q and scale, from the gradient by the weight, ``[numel]``."""
    if not torch.is_grad_enabled():
        return _fused_gradients(grad, *inputs)
    # create_graph=True: these gradients are to be derived once more
    wanted = {i: t for i, t in enumerate(inputs[:4]) if t.requires_grad}
    weight = plain_sum(*inputs) + 0 * sum(t.sum() for t in wanted.values())
    found = torch.autograd.grad(weight, list(wanted.values()), grad, create_graph=True)
    by = dict(zip(wanted, found))
    return by.get(0), by.get(1), by.get(2), by.get(3)


def _fused_gradients(
    grad: Tensor, p: Tensor, n: Tensor, q: Tensor, scale: Tensor, mask: Tensor, beta: Tensor | float
) -> tuple[Tensor, ...]:  # fmt: skip
    kinds, grad_q = (p.dtype, scale.dtype), torch.zeros_like(q)
    slope = 0.0 if isinstance(beta, float) else beta
    p, n, scale = at_least_float32(p, n, scale)
    with no_autocast(p):
        f, g = gate(p, beta), gate(n, beta)
        worth, unit = _worth(p, q, mask, beta), unit_step(_gain(q, beta), len(mask))
        inner = torch.mv(f, grad) - torch.mv(g, grad)  # [rows]: the gradient along each plane
        column = (scale * unit * slope) * worth  # times f (1 - f) it is the slope of the weight by p
        if q.ndim < 2:
            closed = 1 - plane_gates(at_least_float32(q)[0], len(mask), beta)
            by_plane = (scale * unit * (slope if q.ndim else ordered_beta(slope))) * worth * inner * closed
            grad_q = (by_plane if q.ndim else by_plane.sum()).to(q.dtype)
        grad_scale = unit * (worth @ inner)
        # Large tensors change in place: new ones cost more than the sums.
        grad_p = f.addcmul_(f, f, value=-1).mul_(grad).mul_(column.view(-1, 1))
        grad_n = g.addcmul_(g, g, value=-1).mul_(grad).mul_(-column.view(-1, 1))
    return grad_p.to(kinds[0]), grad_n.to(kinds[0]), grad_q, grad_scale.to(kinds[1])


class AllWeights(torch.autograd.Function):
    """:class:`PlaneSum` of several weights, one right after the other, backward too.

    Among convolutions, which leave the processor's caches cold, the same work takes twice as long.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return tuple(fused_sum(*part) for part in _by_weight(inputs))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = []
        for part, grad in zip(_by_weight(ctx.saved_tensors), grads):
            found += [*((None,) * 4 if grad is None else _gradients(grad, *part)), None, None]
        return tuple(found)


def _by_weight(inputs: Any) -> list[Any]:
    """p, n, q, scale, mask and beta of each weight, from all of them in a row."""
    return [inputs[i : i + 6] for i in range(0, len(inputs), 6)]


def no_autocast(t: Tensor) -> AbstractContextManager[Any]:
    """Keeps float32 arithmetic float32 where the caller has autocast on; free where it is off."""
    kind = t.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()
