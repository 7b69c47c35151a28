"""Integers and their bit planes; float weights and their planes.

A weight is a step times an integer code. A code is a difference of two sums of bits: one for the positive weights, P,
and one for the negative, N. Planes lie flat, ``[planes, numel]``: plane b holds bit b (worth 2^b) of every weight.
Source: CSQ (arXiv 2212.02770), bit-level decomposition; two planes for the sign from BSQ (arXiv 2102.10462).
"""

from typing import Any

import torch
from torch import Tensor

from .check import check_finite, whole

MAX_PLANES = 8


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, those of half precision as float32."""
    return tuple(t.float() if t.itemsize < 4 else t for t in tensors)


def check_planes(planes: int) -> int:
    """``planes`` as an int, or a ValueError if it is not a whole number from 1 to 8."""
    return whole("planes", planes, 1, MAX_PLANES)


def place_values(planes: int, like: Tensor | None = None, low: int | Tensor = 0) -> Tensor:
    """The constants 2^low ... 2^(low+planes-1), ``[planes]``, float32, or with dtype and device of ``like``."""
    dtype, device = (like.dtype, like.device) if like is not None else (torch.float32, None)
    return (1 << (torch.arange(planes, device=device) + low)).to(dtype)


def integer_to_planes(codes: Tensor, planes: int) -> tuple[Tensor, Tensor]:
    """Split integer codes (any shape and integer dtype) into the bits of their positive and negative parts.

    Returns P and N, bool, both ``[planes, numel]``, least significant plane first; no weight has a bit in both.
    """
    check_planes(planes)
    flat, most = codes.reshape(-1), 2**planes - 1
    low, high = (int(flat.min()), int(flat.max())) if flat.numel() else (0, 0)
    if low < -most or high > most:
        code = high if high > most else low
        raise ValueError(f"code {code} does not fit into {planes} planes, which hold +-{most}: use more planes")
    b = torch.arange(planes, dtype=torch.uint8, device=codes.device).view(-1, 1)
    bits = (flat.short().abs().to(torch.uint8) >> b).bitwise_and_(1).bool()  # [planes, numel]
    return bits & (flat > 0), bits & (flat < 0)


def signed_digits(codes: Tensor, planes: int) -> tuple[Tensor, Tensor]:
    """Write integer codes (any shape) as digits -1, 0, 1 of the places 2^b, such that leaving low planes out *rounds*.

    From the highest plane down, each digit is the one nearest to what is left, so every run of planes from the top
    holds the code rounded to their grid; plain bits would cut it off, with twice the error. This is what two planes for
    the sign are good for: 7 = 8 - 1. Returns P and N as :func:`integer_to_planes` does; no plane has a weight in both,
    but a weight can have bits in P and N, of different planes.
    """
    positive, negative = integer_to_planes(codes, planes)  # checks, and has the right shapes
    left = codes.reshape(-1).to(torch.int16, copy=True)
    for b in reversed(range(planes)):
        half = 2**b / 2
        torch.gt(left, half, out=positive[b])  # a tie leaves the plane empty
        torch.lt(left, -half, out=negative[b])
        left += (negative[b].short() - positive[b].short()) * 2**b
    return positive, negative


def planes_to_integer(positive: Tensor, negative: Tensor) -> Tensor:
    """The codes sum_b 2^b (P_b - N_b), int16 ``[numel]``, of bits given as bool or 0/1, both ``[planes, numel]``."""
    codes = torch.zeros(positive.shape[1], dtype=torch.int16, device=positive.device)
    for b, (p, n) in enumerate(zip(positive, negative)):  # a plane at a time: all at once takes 16 times the memory
        codes += (p.to(torch.int16) - n.to(torch.int16)) * 2**b
    return codes


def round_to_grid(weight: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """The codes nearest to ``weight / step`` (any shape) that planes ``low`` to ``high - 1`` can hold, as int16.

    These planes hold the multiples of 2^low up to 2^high - 2^low in size; no plane at all (``low == high``) leaves
    zero. ``step`` is 0-dim, the worth of plane 0. Halves go to even, and nothing but the rounding itself is lost.
    """
    size = step.double() * 2**low
    if size == 0 or low == high:
        return torch.zeros_like(weight, dtype=torch.int16)
    limit = 2 ** (high - low) - 1
    return weight.to(torch.float64, copy=True).div_(size).round_().clamp_(-limit, limit).to(torch.int16) * 2**low


def quantization_scale(weight: Tensor) -> Tensor:
    """The scale s = max |W|, 0-dim: with it the largest weight gets the largest code.

    1 for a layer that is empty, or so small that s / 255 is no float any more, so that its planes can still learn.
    """
    scale = weight.detach().abs().amax() if weight.numel() else weight.new_zeros(())
    return torch.where(scale / (2**MAX_PLANES - 1) > 0, scale, torch.ones_like(scale))


def unit_step(scale: Any, planes: int) -> Any:
    """The worth of plane 0: the scale shared out over the largest code, s / (2^N - 1)."""
    return scale / (2**planes - 1)


def float_to_planes(weight: Tensor, planes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Round a float weight (any shape) to N planes; ValueError if it is infinite or not a number.

    Returns scale (0-dim, float32 at least), P and N (bool, ``[planes, numel]``), such that
    weight = scale / (2^N - 1) * sum_b 2^b (P_b - N_b) within half a step.
    """
    check_planes(planes)
    check_finite(weight)
    (weight,) = at_least_float32(weight)
    scale = quantization_scale(weight)
    return scale, *integer_to_planes(round_to_grid(weight, unit_step(scale, planes), 0, planes), planes)
