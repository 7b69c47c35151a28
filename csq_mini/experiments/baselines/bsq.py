"""BSQ: bits that train through the rounding, and whole planes that are trained away (arXiv 2102.10462)."""

from typing import Any

import torch
from torch import Tensor

from ...bits import integer_to_planes, quantization_scale, round_to_grid
from .quantizers import Quantizer, Round
from .search import Search

PIECES = 12  # of a search, with a re-quantisation after each
WEAK, FACTOR = 0.01, 2.0  # the regulariser's first strength, as a share of the recipe's, and how it is tuned


class BitPlanes(Quantizer):
    """A weight as step * round(sum_b 2^b (P_b - N_b)), with trained bits in [0, 2] (equations 3 and 4).

    The two originals are P and N, flat: parameters of one dimension do not decay. They are held ``1 / speed`` times as
    large as the bits, so that with SGD the bits train at speed^2 times the rate. ``planes`` is how many there are now;
    the rows above are zero. The step, ``worth``, moves only when a re-quantisation drops the lowest planes.
    """

    worth: Tensor  # 0-dim
    strength: Tensor  # 0-dim, of the regulariser

    def __init__(self, weight: Tensor, planes: int, available: int = 8, speed: float = 1.0):
        super().__init__(weight, planes, available)
        self.speed = speed
        self.register_buffer("worth", quantization_scale(weight) / (2**planes - 1))
        self.register_buffer("strength", torch.zeros_like(self.worth))

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

    def parts(self, *originals: Tensor) -> tuple[Tensor, Tensor]:
        places = 2.0 ** torch.arange(int(self.planes), device=self.worth.device)
        positive, negative = map(self.bits, originals)
        codes = Round.apply(places @ (positive - negative))
        return codes.clamp(-self.top, self.top).view(self.shape), self.worth

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

    The strength is tuned on the way: after each piece of the search it doubles where the model is above a straight line
    from N planes down to the target, and halves below it; at the target it ends. Planes never come back, and none is
    cut: where the search ends is what the method reaches.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        for part in self.layers.values():
            part.strength.fill_(WEAK * self.recipe.strength)

    def _originals(self, name: str) -> tuple[Tensor, Tensor]:
        layer: Any = self.trainer.model.get_submodule(name)
        return layer.parametrizations.weight.original0, layer.parametrizations.weight.original1

    def penalty(self) -> Tensor:
        share = {name: self.sizes[name] / self.total * int(part.planes) for name, part in self.layers.items()}
        norms = [part.strength * share[n] * part.group_norms(*self._originals(n)) for n, part in self.layers.items()]
        return torch.stack(norms).sum()

    @torch.no_grad()
    def move(self) -> None:
        for name, part in self.layers.items():
            for original in self._originals(name):
                original.clamp_(0, 2 / part.speed)
        done = self.trainer.steps_done
        if done <= self.steps and done % max(self.steps // PIECES, 1) == 0:
            self._requantise(done / self.steps)

    def _requantise(self, progress: float) -> None:
        for name, part in self.layers.items():
            part.requantise(*self._originals(name))
        line = self.recipe.planes + (self.target - self.recipe.planes) * progress
        bits = self.bits()
        factor = 0 if bits <= self.target else FACTOR if bits > line else 1 / FACTOR
        for part in self.layers.values():
            part.strength.mul_(factor)

    def settle(self) -> None:
        for name, part in self.layers.items():
            part.requantise(*self._originals(name))
