"""Puzzles of the chapter on the bits of a weight."""

from __future__ import annotations

import torch
from torch import Tensor

from . import Puzzle
from ._draw import squares


def bits_of(codes: Tensor, planes: int) -> Tensor:
    rows = []
    for b in range(planes):  # one row for each plane, the least significant first
        rows.append([abs(int(code)) // 2**b % 2 for code in codes])
    return torch.tensor(rows)


def keep_planes(codes: Tensor, kept: list[int]) -> Tensor:
    result = []
    for code in codes.tolist():
        sign = -1 if code < 0 else 1
        result.append(sign * sum(2**b for b in kept if abs(code) // 2**b % 2 == 1))
    return torch.tensor(result)


_CODES = torch.tensor([5, -3, 0, 7, -6, 1])

PUZZLES = (
    Puzzle(bits_of, [(_CODES, 3), (torch.tensor([255, -128, 1, -1]), 8), (torch.tensor([4]), 4)],
           squares("codes")),
    Puzzle(keep_planes, [(_CODES, [1, 2]), (_CODES, []), (torch.tensor([-200, 255, 37, -1]), [7, 0]),
                         (torch.tensor([9, -9]), [0, 1, 2, 3])],
           squares("codes")),
)  # fmt: skip
