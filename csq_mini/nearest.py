"""The grid of so many planes that is nearest to a weight, the weight on it, and a search that moves between these."""

import torch
from torch import Tensor

from .bits import at_least_float32, quantization_scale, round_to_grid, unit_step
from .relaxed import CHUNK, no_autocast, plane_gates

SCALES = [2 ** (-part / 8) for part in range(8)]  # that are tried: eight within an octave


def nearest_grid(weight: Tensor, scale: Tensor, planes: int, count: int) -> tuple[Tensor, int]:
    """Scale and end of the run of ``count`` planes, of ``planes``, that rounds a weight with the least squared error.

    Every run of that many planes is tried at eight scales within the octave below ``scale``; in a tie the more
    significant run wins. The run is ``end - count`` to ``end - 1``.
    """
    grids = [(scale * finer, end) for end in range(planes, count - 1, -1) for finer in SCALES]
    return min(grids, key=lambda grid: _error(weight, unit_step(grid[0], planes), grid[1] - count, grid[1]))


def _error(weight: Tensor, step: Tensor, low: int, high: int) -> float:
    """Sum of the squares of what rounding to a grid changes."""
    parts = weight.reshape(-1).split(CHUNK)
    return sum(float((step * round_to_grid(x, step, low, high) - x).double().square_().sum()) for x in parts)


@torch.no_grad()
def roundings(weight: Tensor, planes: int) -> Tensor:
    """A weight on the nearest grid of 0, 1, ... ``planes`` planes, ``[planes + 1, numel]``, float32 at least."""
    kind, (weight,) = weight.dtype, at_least_float32(weight.detach().reshape(-1))
    rows = [torch.zeros_like(weight)]
    for count in range(1, planes + 1):
        scale, end = nearest_grid(weight, quantization_scale(weight), planes, count)
        step = unit_step(scale.to(kind).to(scale), planes)  # the layer will keep its scale in its own type
        rows.append(step * round_to_grid(weight, step, end - count, end))
    return torch.stack(rows)


class HeldWeight:
    """A trained weight that stays what it is while a search moves its precision k.

    At k planes the layer has the weight rounded to the nearest grid of k planes, which is what a freeze makes of it;
    between k - 1 and k it lies between the two, as far as the gate of the plane is open. Planes of one grid would not
    do: its step fits all N planes, and the first few of them hold the weight worse than a grid of their own.
    """

    def __init__(self, weight: Tensor, planes: int):
        self.weight = weight.detach().clone()
        self.added = roundings(weight, planes).diff(dim=0).flip(0)  # [planes, numel], the last plane to open first

    def at(self, k: Tensor, beta: Tensor | float) -> Tensor:
        """The weight at precision ``k`` and a temperature, flat, with a gradient by ``k``."""
        self.added = self.added.to(k.device)  # it is no buffer, which a model takes along
        with no_autocast(self.added):
            return torch.mv(self.added.t(), plane_gates(at_least_float32(k)[0], len(self.added), beta))
