"""The gate that turns a logit into a bit, and the temperature that hardens it.

A bit is 0 or 1 and has no gradient. CSQ trains a real *logit* x instead and reads the bit
through a sigmoid, sigmoid(beta x), whose temperature beta grows until it is a step.
Source: CSQ (arXiv 2212.02770), section 3; the gate is that of continuous sparsification
(arXiv 1912.04427). Like these papers we say "temperature" for what is an inverse temperature:
a larger beta is a harder gate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOGIT = 0.5
"""Magnitude at which every logit starts: +0.5 for an open gate, -0.5 for a closed one."""


def gate(x: Tensor, beta: float | Tensor) -> Tensor:
    """Opening of the gate f_beta(x) = sigmoid(beta x), elementwise.

    Args:
        x: logits, any shape.
        beta: temperature above zero. ``math.inf`` is the hard gate, *defined* as 1[x > 0]: the
            limit at x = 0 would be 1/2, and inf * 0 is not a number. A tensor is taken as finite.

    Returns:
        Values of the shape and dtype of ``x``: 0 or 1 if the gate is hard, else from eps to 1 - eps,
        the dtype's rounding error. Beyond that a sigmoid and its slope fade into denormal numbers,
        on which a CPU, and its optimizer's momentum, are many times slower.

    Source: CSQ (arXiv 2212.02770), the temperature sigmoid of the bi-level relaxation.
    """
    if isinstance(beta, float) and math.isinf(beta):
        return (x > 0).to(x.dtype)
    limit = -math.log(torch.finfo(x.dtype).eps)
    return torch.mul(x, beta).clamp_(-limit, limit).sigmoid_()  # in place: memory is the cost


def temperature(t: float, start: float = 1.0, end: float = 200.0) -> float:
    """Temperature after a fraction ``t`` of the training: start * (end / start) ** t.

    Args:
        t: progress k / K in [0, 1].
        start: beta_0, the temperature of the first step.
        end: beta_K, the temperature at t = 1.

    Raises:
        ValueError: if ``t`` lies outside [0, 1], or a temperature is not finite and above zero.

    Source: CSQ (arXiv 2212.02770), exponential schedule with beta_0 = 1 and beta_K = 200.
    """
    if not 0 <= t <= 1:
        raise ValueError(f"progress t must lie in [0, 1], got {t!r}: pass step / total_steps")
    for name, value in (("start", start), ("end", end)):
        if math.isinf(check_temperature(value)):
            raise ValueError(f"{name} must be finite: only set_temperature takes infinity")
    return start * (end / start) ** t


def check_temperature(beta: float) -> float:
    """``beta`` as a float, or a ValueError if it is neither in 1e-6..1e6 nor ``math.inf``.

    Outside this range float32 can hold neither the temperature's products nor what makes up for it.
    """
    try:
        value = float(beta)
    except (TypeError, ValueError):
        value = math.nan
    if not (1e-6 <= value <= 1e6 or value == math.inf):  # also false for nan
        raise ValueError(
            f"a temperature must be a number above 0 (from 1e-6 to 1e6), got {beta!r}: "
            "use 1.0 for the softest usual gate and math.inf for the hard one"
        )
    return value
