"""Puzzles of the chapter on the budget."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

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


_TIES = (  # two planes with equal logits, in two layers of 10 weights, and room for one
    ("of equal logits the higher plane goes first", [[0.5, -1.0], [-1.0, 0.5]], [0, 1]),
    ("of equal logits the higher plane goes first", [[-1.0, 0.5], [0.5, -1.0]], [1, 0]),
    ("of equal logits in equal planes the earlier layer goes first", [[-1.0, 0.5], [-1.0, 0.5]], [1, 0]),
)


def _wrong_tie(answer: Callable[..., Any]) -> str | None:
    """Which rule of the order an answer breaks; the examples hardly show it."""
    for rule, q, wanted in _TIES:
        found = torch.as_tensor(answer(torch.tensor(q), [10, 10], 0.5, [0, 0])).tolist()
        if found != wanted:
            return f"{rule}: for q = {q}, sizes [10, 10], target 0.5 and no floors {wanted} is wanted, not {found}"
    return None


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
           squares("q", "sizes", "target", "floor"), also=_wrong_tie),
)  # fmt: skip
