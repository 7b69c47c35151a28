"""Puzzles of the chapter on the straight-through estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import Puzzle
from ._draw import curves


def clipped_slope(x: Tensor, grad: Tensor, limit: int) -> Tensor:
    result = []
    for value, arriving in zip(x.tolist(), grad.tolist()):
        inside = -limit <= value <= limit
        result.append(arriving if inside else 0.0)
    return torch.tensor(result)


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: int) -> Tensor:
        ctx.limit = limit
        ctx.save_for_backward(x)
        return x.round().clamp(-limit, limit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= ctx.limit), None


def straight_round(x: Tensor, limit: int) -> Tensor:
    return _Clipped.apply(x, limit)


def _wrong_gradient(answer: Callable[..., Any]) -> str | None:
    """What is wrong with the gradient of an answer to ``straight_round``, whose values are right."""
    x = torch.tensor([-3.4, -2.2, -0.6, 0.0, 0.3, 1.7, 2.3, 9.0], requires_grad=True)
    worth = torch.arange(1.0, 9.0)
    value = answer(x, 2)
    if not isinstance(value, Tensor) or not value.requires_grad:
        return "its gradient is cut off: nothing of it reaches x"
    (found,) = torch.autograd.grad((value * worth).sum(), x)
    wanted = worth * (x.detach().abs() <= 2)
    for at, slope, want in zip(x.tolist(), (found / worth).tolist(), (wanted / worth).tolist()):
        if abs(slope - want) > 1e-4:
            return f"with the limit 2, the slope at x = {at:.1f} should be {want:.0f}, and it is {slope:.3g}"
    return None


def _draw_stairs(arguments: tuple[Any, ...], want: Any, found: Any) -> Any:
    figure = curves("x", "value")(arguments, want, found)
    figure.axes[0].legend(loc="upper left", fontsize=11.5, frameon=False)
    return figure


_X = torch.linspace(-4, 4, 161)
_GRAD = torch.tensor([0.5, -2.0, 3.0, -0.1, 5.0, -4.0, 0.7])

PUZZLES = (
    Puzzle(clipped_slope, [(_X, 1 + 0.5 * _X.cos(), 2),
                           (torch.tensor([-2.4, -2.0, -1.0, 0.0, 1.9, 2.0, 2.1]), _GRAD, 2),
                           (torch.tensor([-7.4, 7.0, 6.0]), torch.tensor([1.0, 2.0, -3.0]), 7)],
           curves("x", "gradient at x")),
    Puzzle(straight_round, [(_X, 2), (torch.tensor([-9.0, -0.4, 0.6, 1.2, 7.7]), 7), (torch.tensor([0.2, -1.6]), 1)],
           _draw_stairs, also=_wrong_gradient),
)  # fmt: skip
