"""Puzzles of the chapter on annealing the temperature."""

from __future__ import annotations

import torch
from torch import Tensor

from . import Puzzle
from ._draw import curves


def progress_when(beta: Tensor, start: float, end: float) -> Tensor:
    result = []
    for wanted in beta.tolist():
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            if start * (end / start) ** middle < wanted:
                low = middle
            else:
                high = middle
        result.append(middle)
    return torch.tensor(result)


def temperature_in_rounds(t: Tensor, start: float, end: float, rounds: int) -> Tensor:
    result = []
    for progress in t.tolist():
        finished = min(int(progress * rounds), rounds - 1)  # rounds that are over; the last one never is
        within = progress * rounds - finished
        result.append(start * (end / start) ** within)
    return torch.tensor(result)


_T = torch.linspace(0, 1, 257)

PUZZLES = (
    Puzzle(progress_when, [(torch.linspace(1, 200, 200), 1.0, 200.0), (torch.tensor([2.0, 8.0, 32.0]), 2.0, 32.0),
                           (torch.tensor([0.75, 1.0]), 0.5, 4.0)],
           curves(r"temperature $\beta$", "progress $t$")),
    Puzzle(temperature_in_rounds, [(_T, 1.0, 200.0, 2), (_T, 0.5, 8.0, 1),
                                   (torch.tensor([0.0, 0.25, 0.6, 1.0]), 2.0, 32.0, 4),
                                   (torch.tensor([0.1, 0.5, 0.9]), 1.0, 200.0, 3)],
           curves("progress $t$", r"temperature $\beta$")),
)  # fmt: skip
