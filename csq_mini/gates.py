"""The gate that turns a logit into a bit, and the temperature that hardens it.

A bit has no gradient, so CSQ trains a real number in its place, a *logit* x, and reads the bit as sigmoid(beta x). The
temperature beta grows until the sigmoid is a step. (An inverse temperature, really: a larger beta is a harder gate.)
Source: CSQ (arXiv 2212.02770), section 3; the gate is that of continuous sparsification (arXiv 1912.04427).
"""

import math

import torch
from torch import Tensor

from .check import check_logits, number

LOGIT = 0.5
"""Size of every logit at the start: +0.5 for an open gate, -0.5 for a closed one."""


def gate(x: Tensor, beta: float | Tensor) -> Tensor:
    """How far the gates of logits ``x`` (any shape) are open: sigmoid(beta x), in the shape and dtype of ``x``.

    ``math.inf`` is the hard gate, *defined* as 1[x > 0]: the limit at x = 0 is 1/2, and inf * 0 is not a number. A
    tensor ``beta`` is taken as finite, above zero. ValueError for a number that is no temperature.
    """
    check_logits(x)
    if not isinstance(beta, Tensor) and math.isinf(check_temperature(beta)):
        return (x > 0).to(x.dtype)
    # Kept eps away from 0 and 1: beyond that the gate and its slope are denormal numbers, 20 times slower on a CPU.
    limit = -math.log(torch.finfo(x.dtype).eps)
    return torch.mul(x, beta).clamp_(-limit, limit).sigmoid_()  # in place: memory is what costs time


def temperature(t: float, start: float = 1.0, end: float = 200.0) -> float:
    """The exponential schedule start * (end / start) ** t, where ``t`` in [0, 1] is the progress step / steps."""
    number("progress t", t, 0, 1, hint=": pass step / total_steps")
    for name, value in (("start", start), ("end", end)):
        if math.isinf(check_temperature(value)):
            raise ValueError(f"{name} must be finite: only set_temperature takes infinity")
    return start * (end / start) ** t


def check_temperature(beta: float) -> float:
    """``beta`` as a float; ValueError unless it lies in 1e-6..1e6, where float32 can hold its products, or is inf."""
    try:
        value = float(beta)
    except (TypeError, ValueError):
        value = math.nan
    if not (1e-6 <= value <= 1e6 or value == math.inf):  # also false for nan
        raise ValueError(f"a temperature must be a number above 0 (from 1e-6 to 1e6), got {beta!r}: "
                         "use 1.0 for the softest usual gate and math.inf for the hard one")  # fmt: skip
    return value
