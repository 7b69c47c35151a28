"""Puzzles of the chapter on why precision matters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from csq_mini import plots

from . import Puzzle
from ._draw import curves


def staircase(x: Tensor, step: float, limit: int) -> Tensor:
    result = []
    for value in x.tolist():
        code = round(value / step)  # the nearest whole number of steps
        code = min(max(code, -limit), limit)  # and no code beyond the limit
        result.append(step * code)
    return torch.tensor(result)


def _judge_stairs(arguments: tuple[Any, ...], found: Any) -> str | None:
    """What a stair must be; halfway between two stairs both are nearest."""
    x, step, limit = arguments
    y, end = torch.as_tensor(found).detach().double(), limit * step
    whole, slack = (y / step).round() * step, 1e-4 * step
    lacks = {
        "which is no whole number of steps": ~((y - whole).abs() <= slack),
        "which lies beyond the limit": y.abs() > end + slack,
        "and there is a nearer stair": (y - x.double().clamp(-end, end)).abs() > step / 2 + slack,
    }
    for what, wrong in lacks.items():
        if wrong.any():
            i = int(wrong.nonzero()[0])
            return f"for x = {x[i]:.4g}, step {step} and limit {limit} it gives {y[i]:.4g}, {what}"
    return None


def best_scale(weights: Tensor, bits: int, scales: Tensor) -> Tensor:
    return scales[torch.stack([_error(weights, bits, scale) for scale in scales]).argmin()]


def _error(weights: Tensor, bits: int, scale: Tensor) -> Tensor:
    """Sum of the squared errors of weights in codes of so many bits, the largest of them worth ``scale``."""
    limit = 2**bits - 1
    step = scale / limit
    return torch.stack([(w - step * (w / step).round().clamp(-limit, limit)) ** 2 for w in weights]).sum()


def _draw_scales(arguments: tuple[Any, ...], want: Any, found: Any) -> Any:
    """The squared error over the candidates, with the one wanted and the one found."""
    weights, bits, scales = arguments
    with plots.style() as colors:
        figure = plots.Picture(2.6)
        ax = figure.subplots()
        errors = [float(_error(weights, bits, scale)) for scale in scales]
        ax.plot(scales, errors, color="0.5", marker=".", lw=1.2)
        ax.plot(want, _error(weights, bits, want), "o", ms=13, mfc="none", mew=2.5, color=colors[0], label="wanted")
        if found is not None and float(found) > 0:
            at = torch.as_tensor(found).detach()
            ax.plot(at, _error(weights, bits, at), "x", ms=9, mew=2.5, color=colors[1], label="yours")
        ax.set(xlabel="scale", ylabel="squared error", ylim=(0, None))
        ax.legend()
    return figure


_WEIGHTS = torch.erfinv(torch.linspace(-0.96, 0.96, 65))  # as many near zero as a bell curve has
_SCALES = torch.linspace(0.3, 1.6, 27)

PUZZLES = (
    Puzzle(staircase, [(torch.linspace(-2.25, 2.25, 361), 0.5, 3), (torch.tensor([0.73, -0.28, 5.0, -5.0]), 0.1, 15),
                       (torch.tensor([9.0, -9.0, 1.2]), 2.0, 1)],
           curves("x", "staircase of x"), judge=_judge_stairs),
    Puzzle(best_scale, [(_WEIGHTS, 2, _SCALES), (_WEIGHTS, 1, _SCALES), (_WEIGHTS, 4, _SCALES),
                        (torch.tensor([1.0, 0.31, 0.29, -0.3, 0.28, -0.27]), 1, torch.tensor([1.0, 0.66, 0.3])),
                        (torch.tensor([0.95, -0.42, 0.11, 0.28, -0.53]), 2, torch.tensor([0.6, 0.8, 0.95, 1.1]))],
           _draw_scales),
)  # fmt: skip
