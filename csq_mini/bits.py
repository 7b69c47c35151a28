"""Integers and their bit planes; float weights and their planes.

A weight is a step times an integer code, and the code is a difference of two sums of bits, one for
the positive and one for the negative weights. Planes lie flat, ``[planes, numel]``: plane b holds
bit b (worth 2^b) of every weight of a layer.
Source: CSQ (arXiv 2212.02770), bit-level decomposition; sign planes from BSQ (arXiv 2102.10462).
"""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

MAX_PLANES = 8


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, those of half precision as float32."""
    return tuple(t.float() if t.itemsize < 4 else t for t in tensors)


def check_planes(planes: int) -> int:
    """``planes`` as an int, or a ValueError if it is not an integer from 1 to 8."""
    if isinstance(planes, bool) or not isinstance(planes, Integral) or not 1 <= planes <= MAX_PLANES:
        raise ValueError(f"planes must be an integer from 1 to {MAX_PLANES}, got {planes!r}")
    return int(planes)


def place_values(planes: int, like: Tensor | None = None) -> Tensor:
    """The constants 2^0 ... 2^(planes-1), shape ``[planes]``, with dtype and device of ``like``."""
    dtype, device = (like.dtype, like.device) if like is not None else (None, None)
    return 2.0 ** torch.arange(planes, dtype=dtype, device=device)


def integer_to_planes(codes: Tensor, planes: int) -> tuple[Tensor, Tensor]:
    """Split integers into the bits of their positive and negative parts.

    Args:
        codes: integers of any shape and integer dtype, each in +-(2^planes - 1).
        planes: number of planes N, 1 to 8.

    Returns:
        P and N, bool, both ``[planes, numel]``, the least significant plane first: a positive code
        has its bits in P, a negative one in N, and no weight has both.

    Raises:
        ValueError: if a code needs more planes than there are.
    """
    check_planes(planes)
    flat = codes.reshape(-1).long()
    if flat.numel() and int(flat.abs().max()) >= 2**planes:
        raise ValueError(
            f"code {int(flat[flat.abs().argmax()])} does not fit into {planes} planes, "
            f"which hold +-{2**planes - 1}: use more planes"
        )
    b = torch.arange(planes, device=codes.device).view(-1, 1)
    bits = (flat.abs() >> b) & 1  # [planes, numel]
    return (bits == 1) & (flat > 0), (bits == 1) & (flat < 0)


def planes_to_integer(positive: Tensor, negative: Tensor) -> Tensor:
    """The integers sum_b 2^b (P_b - N_b): the inverse of :func:`integer_to_planes`.

    Args:
        positive, negative: bits as bool or 0/1, both ``[planes, numel]``.

    Returns:
        int64 codes, ``[numel]``.
    """
    place = 2 ** torch.arange(len(positive), device=positive.device).view(-1, 1)
    return ((positive.long() - negative.long()) * place).sum(0)


def round_to_grid(weight: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """Integer codes nearest to ``weight / step`` that planes ``low`` to ``high - 1`` can hold.

    The representable codes are the multiples of 2^low up to 2^high - 2^low in magnitude; no plane
    at all (``low == high``) leaves zero. Computed in float64, so that the error is at most half of
    step * 2^low (within float rounding) wherever the weight is in range. Halves go to even.

    Args:
        weight: any shape.
        step: 0-dim tensor, the worth of plane 0. A step of 0 gives codes of 0.

    Returns:
        int64 codes of the shape of ``weight``.
    """
    size = step.double() * 2**low
    if size == 0 or low == high:
        return torch.zeros_like(weight, dtype=torch.long)
    limit = 2 ** (high - low) - 1
    units = (weight.double() / size).round().clamp(-limit, limit)
    return units.long() * 2**low


def quantization_scale(weight: Tensor) -> Tensor:
    """The scale s = max |W|, a 0-dim tensor: with it the largest weight gets the largest code.

    A layer of zeros (or one so small that s / 255 is no float any more) gets 1, so that its planes
    can still learn; an empty one gets 1 too.
    """
    scale = weight.detach().abs().amax() if weight.numel() else weight.new_zeros(())
    return torch.where(scale / (2**MAX_PLANES - 1) > 0, scale, torch.ones_like(scale))


def float_to_planes(weight: Tensor, planes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Round a float weight to N planes.

    Args:
        weight: any shape, finite.
        planes: N, 1 to 8.

    Returns:
        scale (0-dim, float32 at least), P and N (bool, ``[planes, numel]``), such that
        weight = scale / (2^N - 1) * sum_b 2^b (P_b - N_b) within half a step.

    Raises:
        ValueError: if ``planes`` is not in 1..8, or a weight is infinite or not a number.

    Source: CSQ (arXiv 2212.02770), the decomposition of a layer's weight.
    """
    check_planes(planes)
    if not torch.isfinite(weight).all():
        bad = int((~torch.isfinite(weight)).sum())
        raise ValueError(
            f"{bad} of {weight.numel()} weights are NaN or infinite: "
            "repair the checkpoint or train with a smaller learning rate"
        )
    (weight,) = at_least_float32(weight)
    scale = quantization_scale(weight)
    codes = round_to_grid(weight, scale / (2**planes - 1), 0, planes)
    return scale, *integer_to_planes(codes, planes)


def planes_to_float(scale: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """The weight scale / (2^N - 1) * sum_b 2^b (P_b - N_b), flat ``[numel]``, dtype of ``scale``."""
    step = scale / (2 ** len(positive) - 1)
    return step * planes_to_integer(positive, negative).to(scale.dtype)
