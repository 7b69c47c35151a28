"""Puzzles of the chapter on relaxing a bit."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import Puzzle
from ._draw import curves, squares


def logit_behind(opening: Tensor, beta: float) -> Tensor:
    result = []
    for wanted in opening.tolist():
        low, high = -20.0, 20.0
        for _ in range(60):
            middle = (low + high) / 2
            if 1 / (1 + math.exp(-beta * middle)) < wanted:
                low = middle
            else:
                high = middle
        result.append(middle)
    return torch.tensor(result)


def soft_weight(p: Tensor, n: Tensor, scale: float, beta: float) -> Tensor:
    def opening(logit: float) -> float:
        return float(logit > 0) if beta == math.inf else 1 / (1 + math.exp(-beta * logit))

    planes, weights = p.shape
    gain = 1.0 if beta == math.inf else 1 / math.tanh(beta / 4)
    result = []
    for i in range(weights):
        total = sum(2**b * (opening(float(p[b, i])) - opening(float(n[b, i]))) for b in range(planes))
        result.append(gain * scale / (2**planes - 1) * total)
    return torch.tensor(result)


def _learns(answer: Callable[..., Tensor]) -> str | None:
    """Whether p and n get the gradients that they should."""
    p, n = (torch.tensor(v, requires_grad=True) for v in ([[0.5], [-0.2]], [[-0.5], [0.1]]))
    weight = answer(p, n, 1.0, 4.0)
    if not weight.requires_grad:
        return "no gradient reaches the logits at temperature 4"
    weight.sum().backward()
    for name, logits, sign in (("p", p, 1), ("n", n, -1)):
        f = torch.sigmoid(4 * logits.detach())
        right = sign * 4 * f * (1 - f) * torch.tensor([[1.0], [2.0]]) / 3 / math.tanh(1.0)
        if logits.grad is None or not torch.allclose(logits.grad, right, rtol=1e-3):
            return f"the gradient by {name} at temperature 4 is not that of the gates"
    return None


_P = torch.tensor([[0.5, -0.5, -0.4, 0.1], [-0.5, -0.6, 0.3, 0.0], [0.7, -0.5, -0.1, -0.2]])
_N = torch.tensor([[-0.5, -0.3, -0.5, 0.0], [-0.5, 0.5, -0.6, 0.2], [-0.5, 0.4, -0.5, -0.1]])
_ONE = torch.tensor([[0.5, -0.5]])

PUZZLES = (
    Puzzle(logit_behind, [(torch.linspace(0.02, 0.98, 97), 4.0), (torch.tensor([0.5, 0.25, 0.9]), 1.0),
                          (torch.tensor([0.01, 0.999]), 20.0), (torch.tensor([0.3]), 0.5)],
           curves("opening of the gate", r"logit, at $\beta$ = 4")),
    Puzzle(soft_weight, [(_P, _N, 1.4, 4.0), (_P, _N, 1.4, math.inf), (_P, _N, 0.7, 1.0), (_ONE, -_ONE, 2.0, 0.5),
                         (torch.zeros(2, 1), torch.zeros(2, 1), 1.0, math.inf), (_P, _N, 1.0, 200.0)],
           squares("p", "n"), _learns),
)  # fmt: skip
