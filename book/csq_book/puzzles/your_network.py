"""Puzzles of the chapter on a network of one's own, and what can go wrong with it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import Puzzle
from ._draw import squares


def undecided_share(logits: Tensor, beta: float) -> float:
    count = 0
    for x in logits.flatten().tolist():
        opening = 1 / (1 + math.exp(-beta * x))
        count += 0.05 < opening < 0.95
    return count / logits.numel()


def in_training(groups: list[dict[str, Any]], parameters: list[Tensor]) -> list[bool]:
    answer = []
    for parameter in parameters:
        found = False
        for group in groups:
            for other in group["params"]:
                found = found or other is parameter  # the same tensor, not only the same numbers
        answer.append(found)
    return answer


def _draw_training(arguments: tuple[Any, ...], want: Any, found: Any) -> Any:
    """A square for each parameter: how many values it has, and whether the optimizer holds it."""
    sizes = torch.tensor([parameter.numel() for parameter in arguments[1]])
    answer = None if found is None else torch.tensor([int(yes) for yes in found])
    return squares("sizes")((sizes,), torch.tensor([int(yes) for yes in want]), answer)


_LOGITS = torch.tensor([0.5, -0.5, 0.1, -0.02, 0.0, 2.0])
_A, _B, _C, _D = torch.ones(3), torch.ones(3), torch.zeros(2, 4), torch.ones(6)

PUZZLES = (
    Puzzle(undecided_share, [
        (_LOGITS, 10.0), (_LOGITS, 1.0), (_LOGITS, 200.0), (torch.tensor([[3.0, -3.0], [2.0, -2.0]]), 1.0),
        (torch.tensor([[0.29, 0.3, -0.29], [-0.3, 0.0, 5.0]]), 10.0),
    ], squares("logits", "beta")),
    Puzzle(in_training, [
        ([{"params": [_A, _C]}, {"params": [_D]}], [_A, _B, _C, _D]),
        ([{"params": [_B]}], [_A, _B, torch.ones(3)]), ([], [_A]), ([{"params": []}, {"params": [_C, _A]}], [_A]),
        ([{"params": [_A]}], []),
    ], _draw_training),
)  # fmt: skip
