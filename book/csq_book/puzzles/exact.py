"""Puzzles of the chapter on the exact model: a table of values, and bits in bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from . import Puzzle
from ._draw import squares


def table_and_places(codes: Tensor) -> tuple[Tensor, Tensor]:
    values: list[int] = []
    for code in codes.tolist():
        if code not in values:
            values.append(code)
    values.sort()
    places = [values.index(code) for code in codes.tolist()]
    return torch.tensor(values), torch.tensor(places)


def read_fields(payload: Tensor, width: int, places: Tensor) -> Tensor:
    bits = []  # of all bytes, the lowest bit of each byte first
    for byte in payload.tolist():
        bits += [byte // 2**b % 2 for b in range(8)]
    found = []
    for place in places.tolist():
        field = bits[place * width : (place + 1) * width]
        found.append(sum(2**b * bit for b, bit in enumerate(field)))
    return torch.tensor(found)


PUZZLES = (
    Puzzle(table_and_places, [(torch.tensor([128, 0, -128, 129, 0, 128, -128, 0]),), (torch.tensor([3, 3, 3]),),
                              (torch.tensor([2, -7, 5, 2, 0]),)],
           squares("codes")),
    Puzzle(read_fields, [(torch.tensor([0b10001101, 0b01111010, 0b11010110]), 3, torch.tensor([0, 1, 2, 7])),
                         (torch.tensor([1, 255, 170, 85]), 5, torch.tensor([5, 0, 3, 1, 4])),
                         (torch.tensor([7, 200, 31]), 8, torch.tensor([2, 0, 1])),
                         (torch.tensor([0b01100101]), 1, torch.tensor([0, 1, 2, 5, 7])),
                         (torch.tensor([77, 190, 33, 254, 129, 6, 91]), 7, torch.tensor([7, 1, 1, 6]))],
           squares("bytes", "width", "places")),
)  # fmt: skip
