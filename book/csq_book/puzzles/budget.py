"""Puzzles of the chapter on the budget."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from . import Puzzle
from ._draw import squares


def size_in_bits(q: Tensor, sizes: Tensor) -> float:
    bits = weights = 0
    for logits, size in zip(q.tolist(), sizes.tolist()):
        for logit in logits:
            if logit > 0:
                bits += size  # an open plane holds a bit for each weight
        weights += size
    return bits / weights


def planes_kept(q: Tensor, sizes: list[int], target: float, floor: list[int]) -> Tensor:
    kept = [0] * len(sizes)
    left = [[(-x, -b, layer) for b, x in enumerate(logits)] for layer, logits in enumerate(q.tolist())]
    room = Fraction(str(target)) * sum(sizes)

    def keep(plane: tuple[float, int, int]) -> None:
        nonlocal room
        left[plane[2]].remove(plane)
        kept[plane[2]] += 1
        room -= sizes[plane[2]]

    for layer, count in enumerate(floor):
        for _ in range(count):
            keep(min(left[layer]))  # the largest logit, and of equals the highest plane
    for plane in sorted(plane for planes in left for plane in planes):
        if sizes[plane[2]] <= room:
            keep(plane)
    return torch.tensor(kept)


_Q = torch.tensor([[-0.4, -0.1, 0.3, 0.9], [-0.8, -0.5, -0.2, 0.2], [0.1, 0.6, 0.7, 0.8]])
_SIZES = [10, 60, 20]
_EQUAL = torch.full((3, 4), 0.5)

PUZZLES = (
    Puzzle(size_in_bits, [(_Q, torch.tensor(_SIZES)), (-_Q, torch.tensor([5, 5, 90])), (_Q * 0, torch.tensor(_SIZES)),
                          (torch.tensor([[0.0, 1.0, 2.0], [-1.0, 0.0, 1.0]]), torch.tensor([7, 13]))],
           squares("q", "sizes")),
    Puzzle(planes_kept, [(_Q, _SIZES, 2.0, [1, 1, 1]), (_Q, _SIZES, 1.5, [0, 0, 0]), (_Q, _SIZES, 2.0, [0, 2, 0]),
                         (_Q, _SIZES, 1.0, [1, 1, 1]), (_EQUAL, _SIZES, 1.7, [1, 1, 1]),
                         (_EQUAL, [8, 8, 8], 1.5, [0, 0, 2]), (_Q, _SIZES, 4.0, [0, 0, 0]),
                         (_Q, _SIZES, 0.7, [0, 0, 0])],
           squares("q", "sizes", "target", "floor")),
)  # fmt: skip
