"""BSQ: bits that train through the rounding, and whole planes that are trained away (arXiv 2102.10462)."""

from typing import Any

import torch
from torch import Tensor

from ...bits import integer_to_planes, quantization_scale, round_to_grid
from .quantizers import Quantizer, Round
from .search import Search

PIECES = 12  # of a search, with a re-quantisation after each
PULL = 1.0  # of the regulariser, as a share of the recipe's strength, for each bit above the line
BIT_RATE = 3.0  # of its bits, over that of float weights; on digits ten times cost accuracy, thirty the network
ARRIVES = 0.75  # share of the search at which the line is at the target


class BitPlanes(Quantizer):
    """A weight as step * round(sum_b 2^b (P_b - N_b)), with trained bits in [0, 2] (equations 3 and 4).

    The two originals are P and N, flat: parameters of one dimension do not decay. They are held ``1 / speed`` times as
    large as the bits, so that with SGD the bits train at speed^2 times the rate. ``planes`` is how many there are now;
    the rows above are zero. The step, ``worth``, moves only when a re-quantisation drops the lowest planes.
    """

    worth: Tensor  # 0-dim

    def __init__(self, weight: Tensor, planes: int, available: int = 8, speed: float = 1.0):
        super().__init__(weight, planes, available)
        self.speed = speed
        self.register_buffer("worth", quantization_scale(weight) / (2**planes - 1))

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """P and N of a float weight."""
        return self._originals(round_to_grid(weight.detach(), self.worth, 0, self.available), weight.dtype)

    def _originals(self, codes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        positive, negative = (bits.to(dtype) / self.speed for bits in integer_to_planes(codes, self.available))
        return positive.reshape(-1), negative.reshape(-1)

    def bits(self, original: Tensor) -> Tensor:
        """The bits of the planes there are, ``[planes, numel]``, least significant first."""
        return original.view(self.available, -1)[: int(self.planes)] * self.speed

    def unrounded(self, positive: Tensor, negative: Tensor) -> Tensor:
        """The codes before rounding, flat."""
        places = 2.0 ** torch.arange(int(self.planes), device=self.worth.device)
        return places @ (self.bits(positive) - self.bits(negative))

    def parts(self, *originals: Tensor) -> tuple[Tensor, Tensor]:
        codes = Round.apply(self.unrounded(*originals))
        return codes.clamp(-self.top, self.top).view(self.shape), self.worth

    def span(self, *originals: Tensor) -> Tensor:
        """log2 of the largest code and one, 0-dim: the planes in use, which falls before a plane is empty."""
        return (self.unrounded(*originals).abs().amax().clamp(max=self.top) + 1).log2()

    def group_norms(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Sum over the planes of the l2 norm of all their bits, 0-dim (equation 5)."""
        both = torch.cat([self.bits(positive), self.bits(negative)], 1)
        return torch.sqrt(both.square().sum(1) + 1e-12).sum()  # the root has no slope at zero

    @torch.no_grad()
    def requantise(self, positive: Tensor, negative: Tensor) -> None:
        """Make every bit 0 or 1 again without changing the weight, and drop the highest and lowest planes of zeros."""
        codes = self.parts(positive, negative)[0].to(torch.int16)
        there = [bool((codes.abs() >> b & 1).any()) for b in range(int(self.planes))]
        low = there.index(True) if any(there) else 0
        high = len(there) - there[::-1].index(True) if any(there) else 1  # the last plane stays
        self.planes.fill_(high - low)
        self.worth.mul_(2**low)
        for original, new in zip((positive, negative), self._originals(codes >> low, positive.dtype)):
            original.copy_(new)


class GroupLasso(Search):
    """The paper's regulariser, each layer's weighed by its size (equation 5), and its periodic re-quantisation.

    The paper has a strength for each size, found by trying. Here it is in proportion to how far the planes in use are
    above a straight line from N down to the target, and 0 below it. (One that grows until planes go took all weights
    to zero in a short search: with batch norm a common factor of a layer's bits is free, so nothing holds them when
    they sink together.) Planes never come back, and none is cut: where the search ends is what the method reaches.
    """

    def _originals(self, name: str) -> tuple[Tensor, Tensor]:
        layer: Any = self.trainer.model.get_submodule(name)
        return layer.parametrizations.weight.original0, layer.parametrizations.weight.original1

    def penalty(self) -> Tensor:
        share = {name: self.sizes[name] / self.total for name in self.layers}
        with torch.no_grad():
            used = sum(share[n] * part.span(*self._originals(n)) for n, part in self.layers.items())
            progress = min(self.trainer.steps_done / max(ARRIVES * self.steps, 1), 1.0)
            above = used - (self.recipe.planes + (self.target - self.recipe.planes) * progress)
        norms = [share[n] * int(part.planes) * part.group_norms(*self._originals(n)) for n, part in self.layers.items()]
        return PULL * self.recipe.strength * above.clamp(min=0) * torch.stack(norms).sum()

    @torch.no_grad()
    def move(self) -> None:
        for name, part in self.layers.items():
            for original in self._originals(name):
                original.clamp_(0, 2 / part.speed)
        done = self.trainer.steps_done
        if done <= self.steps and done % max(self.steps // PIECES, 1) == 0:
            self.settle()

    def settle(self) -> None:
        for name, part in self.layers.items():
            part.requantise(*self._originals(name))
