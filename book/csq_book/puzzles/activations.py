"""Puzzles of the chapter on activations."""

from __future__ import annotations

import torch
from torch import Tensor

from . import Puzzle
from ._draw import curves, squares


def quantized_relu(x: Tensor, alpha: float, bits: int) -> Tensor:
    step = alpha / (2**bits - 1)
    levels = [step * code for code in range(2**bits)]  # from 0 to alpha
    nearest = [min(levels, key=lambda y: abs(y - value)) for value in x.tolist()]
    return torch.tensor(nearest)


def pact_gradients(x: Tensor, alpha: float, grad: Tensor) -> tuple[Tensor, float]:
    to_x, to_alpha = torch.zeros(len(x)), 0.0
    for i, value in enumerate(x.tolist()):
        if 0 < value < alpha:
            to_x[i] = grad[i]
        elif value >= alpha:
            to_alpha += float(grad[i])
    return to_x, to_alpha


_X = torch.tensor([-1.0, 0.0, 0.5, 1.5, 2.0, 3.0])
_GRAD = torch.tensor([0.7, -0.3, 0.2, -0.4, 0.5, 0.25])

PUZZLES = (
    Puzzle(quantized_relu, [(torch.linspace(-1.003, 5.003, 200), 3.0, 2), (torch.linspace(-2.01, 2.02, 57), 0.8, 3),
                            (torch.linspace(-1.01, 9.03, 31), 6.0, 8), (torch.tensor([-3.0, 0.2, 0.6, 7.0]), 1.0, 1)],
           curves("x", "y")),
    Puzzle(pact_gradients, [(_X, 2.0, _GRAD), (_X, 0.5, -2 * _GRAD), (_X, 9.0, _GRAD)],
           squares("x", "alpha", "grad")),
)  # fmt: skip
