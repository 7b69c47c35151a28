"""Puzzles of the chapter on reading a scheme."""

from __future__ import annotations

import torch
from torch import Tensor

from . import Puzzle
from ._draw import squares


def order_agreement(x: Tensor, y: Tensor) -> float:
    total, pairs = 0, 0
    for i in range(len(x)):
        for j in range(i):
            product = float((x[i] - x[j]) * (y[i] - y[j]))
            total += (product > 0) - (product < 0)  # the same order, the other, or a tie
            pairs += 1
    return total / pairs


def buy_planes(losses: Tensor, sizes: list[int], room: int) -> list[int]:
    counts = [1] * len(sizes)  # every layer begins with one plane, and pays for it
    left = room - sum(sizes)
    while True:
        best, buyer = 0.0, None
        for i, size in enumerate(sizes):
            if counts[i] + 1 < losses.shape[1] and size <= left:
                worth = float(losses[i, counts[i]] - losses[i, counts[i] + 1]) / size
                if worth > best:  # of equals, the earlier layer
                    best, buyer = worth, i
        if buyer is None:
            return counts
        counts[buyer] += 1
        left -= sizes[buyer]


_LOSSES = torch.tensor([[9.0, 4.0, 2.0, 1.0], [9.0, 3.0, 1.0, 0.5], [9.0, 6.0, 1.0, 0.9]])

PUZZLES = (
    Puzzle(order_agreement, [
        (torch.tensor([5, 4, 1, 2, 1]), torch.tensor([3, 4, 1, 2, 0])), (torch.arange(6), torch.arange(6) * 7),
        (torch.arange(4.0), torch.tensor([9.0, 1.0, 0.5, -3.0])), (torch.tensor([1, 1, 2]), torch.tensor([2, 1, 2])),
        (torch.tensor([0.1, 0.2, 100.0]), torch.tensor([0.3, 0.1, 0.2])),
    ], squares("x", "y")),
    Puzzle(buy_planes, [
        (_LOSSES, [1, 2, 4], 12), (_LOSSES, [1, 2, 4], 7), (_LOSSES, [1, 1, 9], 100), (_LOSSES, [3, 1, 1], 9),
        (torch.tensor([[5.0, 4.0, 3.0, 2.0], [5.0, 4.0, 3.0, 2.0]]), [2, 2], 6),
        (torch.tensor([[5.0, 1.0, 2.0], [5.0, 4.0, 3.0]]), [1, 1], 4),
        (torch.tensor([[9.0, 8.0, 1.0], [9.0, 2.0, 1.0]]), [10, 1], 13),
    ], squares("losses", "sizes", "room")),
)  # fmt: skip
