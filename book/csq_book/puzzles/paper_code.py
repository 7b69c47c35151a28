"""Puzzles of the chapter on the way from the paper to the code."""

from __future__ import annotations

import torch
from torch import Tensor

from . import Puzzle
from ._draw import curves, squares


def off_grid(weights: Tensor, step: float) -> Tensor:
    result = []
    for weight in weights.tolist():
        below = int(weight / step) - 1  # surely a multiple below the weight
        result.append(min(abs(weight / step - k) for k in range(below, below + 4)))
    return torch.tensor(result)


def integers_from_places(positive: Tensor, negative: Tensor, places: Tensor) -> tuple[Tensor, float]:
    codes, weights = [], []
    for i in range(positive.shape[1]):
        sign = [int(p) - int(n) for p, n in zip(positive[:, i], negative[:, i])]
        codes.append(sum(2**b * s for b, s in enumerate(sign)))
        weights.append(sum(float(v) * s for v, s in zip(places, sign)))
    square = sum(c * c for c in codes)
    step = sum(c * w for c, w in zip(codes, weights)) / square if square else 0.0
    return torch.tensor(codes), step


def _bits(codes: list[int], planes: int) -> Tensor:
    return torch.tensor([[max(code, 0) >> b & 1 for code in codes] for b in range(planes)])


_CODES = [5, -3, 0, 7, -2]
_PAIR = _bits(_CODES, 3), _bits([-code for code in _CODES], 3)

PUZZLES = (
    Puzzle(off_grid, [(torch.linspace(-1, 1, 201), 0.4), (torch.tensor([0.0, 3.0, -3.0, 3.1, -2.9]), 3.0),
                      (torch.tensor([0.06, -0.06, 0.49]), 0.05)],
           curves("weight", "distance (steps)")),
    Puzzle(integers_from_places, [(*_PAIR, torch.tensor([0.9, 2.3, 3.7])), (*_PAIR, torch.tensor([0.25, 0.5, 1.0])),
                                  (*_PAIR, torch.tensor([-1.0, 3.0, 0.5])),
                                  (_bits([0, 0], 2), _bits([0, 0], 2), torch.tensor([1.0, 3.0]))],
           squares("positive", "negative", "places")),
)  # fmt: skip
