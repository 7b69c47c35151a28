"""Learned step and range under a memory budget (Uhlich et al., "Mixed precision DNNs", arXiv 1905.11452)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...check import Diverged
from ...targets import capacity, planes_in
from .quantizers import TINY, Quantizer
from .rounding import nearest
from .search import Search

EDGE = 1e-4  # of a plane: a range that is 2^k - 1 steps but for float rounding has k planes


class LearnedRange(torch.autograd.Function):
    """The weight on the grid of step d, clipped at the range q, with the paper's gradients.

    Within the range d gets (Q(w) - w) / d and w gets 1; beyond it q gets sign(w).
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, d: Tensor, q: Tensor, top: Tensor) -> Tensor:
        value = (weight / d).round().clamp(-top, top) * d
        ctx.save_for_backward(weight, value, d, q)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        weight, value, d, q = ctx.saved_tensors
        inside = weight.abs() <= q
        of_step = (grad * (value - weight) / d)[inside].sum()
        of_range = (grad * weight.sign())[~inside].sum()
        return grad * inside, of_step, of_range, None


class StepAndRange(Quantizer):
    """A weight whose step d and range q are trained; its planes follow, ceil(log2(q / d + 1)).

    This is the paper's third parametrization, by d and q, which it finds best. Both are held as logarithms, so that
    they stay above zero and one rate suits all layers. The largest code is q / d, rounded. ``planes`` is the most there
    may be: N in the search, and what the layer has once it is settled.
    """

    def __init__(self, weight: Tensor, planes: int, available: int = 8):
        super().__init__(weight, planes, available)
        most = weight.detach().abs().amax().clamp(min=TINY)
        self.log_range = nn.Parameter(most.log())
        self.log_step = nn.Parameter((most / (2**planes - 1)).log())
        self.register_buffer("taken", torch.zeros_like(self.planes))  # planes that settling took away

    def precision(self) -> Tensor:
        """log2(q / d + 1), 0-dim: planes before they are rounded up."""
        return ((self.log_range - self.log_step).exp() + 1).log2()

    def kept(self) -> int:
        precision = float(self.precision().detach())
        if math.isnan(precision):
            raise Diverged("a step or a range is NaN or infinite: lower the learning rate")
        return min(max(math.ceil(min(precision, self.available) - EDGE), 1), int(self.planes))

    def _step(self) -> tuple[Tensor, Tensor, Tensor]:
        d, q = self.log_step.exp(), self.log_range.exp()
        return d, q, (q / d).detach().round().clamp(max=2 ** self.kept() - 1)

    def parts(self, *originals: Tensor) -> tuple[Tensor, Tensor]:
        d, _, top = self._step()
        return (originals[0] / d).round().clamp(-top, top), d

    def forward(self, *originals: Tensor) -> Tensor:
        d, q, top = self._step()
        return LearnedRange.apply(originals[0], d, q, top)

    @torch.no_grad()
    def fit(self, weight: Tensor, count: int) -> None:
        """Take ``count`` planes, and the grid of so many that lies nearest to a weight."""
        scheme = nearest(weight, count, self.available)
        self.log_step.fill_(math.log(scheme.step))
        self.log_range.fill_(math.log(scheme.step * (2**count - 1)))

    @torch.no_grad()
    def bound(self) -> None:
        """Keep the range between one step and what the planes hold."""
        most = self.log_step + math.log(2 ** int(self.planes) - 1)
        self.log_range.copy_(self.log_range.clamp(self.log_step, most))


class MemorySearch(Search):
    """The paper's penalty on the model's size above the budget, strength * max(0, B - target)^2.

    B counts whole planes, and has the gradient of log2(q / d + 1). A penalty ends near its bound and not below it, so
    settling takes planes where B is above the target: each time from the layer that is nearest to having one fewer.
    """

    def penalty(self) -> Tensor:
        planes = {}
        for name, part in self.layers.items():
            smooth = part.precision()
            planes[name] = smooth + (part.kept() - smooth.detach())
        bits = torch.stack([self.sizes[name] / self.total * k for name, k in planes.items()]).sum()
        return self.recipe.strength * (bits - self.target).clamp(min=0).square()

    def move(self) -> None:
        for part in self.layers.values():
            part.bound()

    def settle(self) -> None:
        counts = {name: part.kept() for name, part in self.layers.items()}
        settled, room = dict(counts), capacity(self.target, self.sizes)
        over = {name: float(part.precision().detach()) - counts[name] for name, part in self.layers.items()}  # -1 to 0
        while planes_in(self.sizes, settled) > room:
            name = min((n for n, k in settled.items() if k > 1), key=lambda n: over[n] + counts[n] - settled[n])
            settled[name] -= 1
        for name, part in self.layers.items():
            part.taken.fill_(counts[name] - settled[name])
            part.planes.fill_(settled[name])
            if counts[name] > settled[name]:
                layer: Any = self.trainer.model.get_submodule(name)
                part.fit(layer.parametrizations.weight.original, settled[name])

    def cut(self) -> Mapping[str, int]:
        return {name: int(part.taken) for name, part in self.layers.items()}
