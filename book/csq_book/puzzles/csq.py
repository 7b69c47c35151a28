"""Puzzles of the chapter on CSQ as a whole."""

from __future__ import annotations

import torch
from torch import Tensor

from . import Puzzle
from ._draw import squares


def hard_codes(p: Tensor, n: Tensor, q: Tensor) -> Tensor:
    planes, weights = p.shape
    codes = [0] * weights
    for b in range(planes):
        for w in range(weights):
            if q[b] > 0 and p[b, w] > 0:
                codes[w] += 2**b
            if q[b] > 0 and n[b, w] > 0:
                codes[w] -= 2**b
    return torch.tensor(codes)


def is_exact(weight: Tensor, step: float, planes: int) -> bool:
    one = torch.tensor(step, dtype=torch.float32)
    values = {float(one * code) for code in range(-(2**planes) + 1, 2**planes)}
    return all(w in values for w in weight.flatten().tolist())


_P = torch.tensor([[0.5, -0.5, 0.2, 0.0], [-0.5, -1.0, 0.3, 0.7], [0.1, -0.5, -0.5, 0.9]])
_N = torch.tensor([[-0.5, 0.5, 0.4, -0.2], [-0.5, 0.6, -0.3, -0.7], [-0.1, -0.5, 0.5, -0.9]])
_TENTHS = torch.tensor(0.1) * torch.tensor([3, -7, 0, 1, 6])
_NEAR = torch.nextafter(_TENTHS, torch.tensor([0.3, -0.7, 0.0, 1.0, 0.6]))  # the fourth moves by a last digit
_PLAIN = torch.tensor(0.013) * torch.arange(-255, 256).view(7, 73)

PUZZLES = (
    Puzzle(hard_codes, [(_P, _N, torch.tensor([0.5, 0.5, 0.5])), (_P, _N, torch.tensor([-0.5, 2.0, 1e-3])),
                        (_P, _N, torch.tensor([0.1, 0.0, 0.1])),
                        (torch.full((8, 2), 0.5) * torch.tensor([1, -1]),
                         torch.full((8, 2), 0.5) * torch.tensor([-1, 1]), torch.ones(8))],
           squares("p", "n", "q")),
    Puzzle(is_exact, [(_TENTHS, 0.1, 3), (_NEAR, 0.1, 3), (_TENTHS, 0.1, 2), (_TENTHS / 2, 0.1, 3), (_PLAIN, 0.013, 8),
                      (torch.tensor([0.25, 0.75]), 0.5, 8), (torch.tensor([4.0, -4.0]), 1.0, 2),
                      (torch.tensor([[3.0, -3.0]]), 1.0, 2)],
           squares("weight", "step", "planes")),
)  # fmt: skip
