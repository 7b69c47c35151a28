"""Puzzles of the chapter on choosing bits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import Puzzle
from ._draw import squares


def openings(q: Tensor) -> Tensor:
    counts = []
    for logits in q.T.tolist():  # one plane after the other, over the steps
        steps = zip(logits[:-1], logits[1:])
        counts.append(sum(1 for before, now in steps if before <= 0 < now))
    return torch.tensor(counts)


def mask_gradient(grad: Tensor, p: Tensor, n: Tensor, q: Tensor, beta: float) -> Tensor:
    def gate(x: float) -> float:
        return 1 / (1 + math.exp(-beta * x))

    result = []
    for b, logit in enumerate(q.tolist()):
        slope = beta * gate(logit) * (1 - gate(logit))
        weights = zip(grad.tolist(), p[b].tolist(), n[b].tolist())
        inner = sum(g * (gate(x) - gate(y)) for g, x, y in weights)
        result.append(2**b * slope * inner)
    return torch.tensor(result)


_OVER_TIME = torch.tensor([
    [0.5, 0.5, 0.5], [0.2, 0.1, 0.4], [-0.1, -0.2, 0.0], [0.1, -0.3, 0.2], [-0.2, -0.1, 0.3], [0.3, -0.4, 0.4],
])  # fmt: skip
_GRAD = torch.tensor([1.0, -0.5, 0.25, 2.0])
_P = torch.tensor([[0.5, -0.5, 0.5, -0.5], [0.3, 0.3, 0.3, 0.3], [0.6, -0.2, 0.0, 0.4]])
_N = torch.tensor([[-0.5, 0.5, -0.5, -0.5], [0.3, 0.3, 0.3, 0.3], [-0.4, 0.1, -0.5, -0.6]])
_Q = torch.tensor([0.5, 0.2, -0.3])

PUZZLES = (
    Puzzle(openings, [(_OVER_TIME,), (-_OVER_TIME,), (torch.ones(1, 4),),
                      (torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [2.0, 0.0]]),)],
           squares("q")),
    Puzzle(mask_gradient, [(_GRAD, _P, _N, _Q, 1.0), (_GRAD, _N, _P, _Q, 4.0), (_GRAD, _P, _N, torch.zeros(3), 8.0),
                           (_GRAD[:2], _P[:, :2].repeat(2, 1), _N[:, :2].repeat(2, 1), torch.linspace(-1, 1, 6), 2.0)],
           squares("grad", "p", "n", "q")),
)  # fmt: skip
