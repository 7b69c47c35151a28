"""The planes of one weight, in a module of their own: they give the weight, are frozen, and are found in a model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4
from weakref import WeakSet

import torch
from torch import Tensor, nn

from .bits import at_least_float32, integer_to_planes, quantization_scale, round_to_grid, signed_digits, unit_step
from .check import OutdatedParameter, Retired, check_finite, other_phase, refuse_old_wrapper
from .gates import LOGIT
from .modules import named_modules, unwrap
from .nearest import HeldWeight, nearest_grid
from .relaxed import AllWeights, PlaneSum, places, plain_sum, plane_gates, plane_logits

DROPPED, LEARNED, FILLED = 0, 1, 2
"""What the ``mask`` of a frozen layer says of a plane."""

MASKS = ("ordered", "free")
"""Ways in which a layer chooses its planes, see :class:`Planes`."""


class Planes(nn.Module):
    """The planes of one weight. Calling it gives the weight at the present temperature, or with every gate hard.

    Until the freeze all N planes are there, and gates choose among them: ``masks="ordered"`` opens them from the
    highest down, as many as the layer's precision says; ``"free"`` has a logit for each, as the paper does. From the
    freeze on the choice is a constant: ``q`` counts no more, and ``p`` and ``n`` hold the planes kept and no others.
    """

    alive: WeakSet[Planes] = WeakSet()  # all there are, so that copies learn of a freeze

    # All there is to know, but what a search holds, lies in these tensors, for whoever copies or averages them (EMA).
    # q comes first: an average made before the freeze that is given what comes after it then fails before it changes.
    q: nn.Parameter  # ordered masks: the precision, 0-dim; free ones: their logits, [N]; as these ended, [1, N]
    scale: nn.Parameter  # 0-dim; the weight that all N planes together hold
    p: nn.Parameter  # bit logits, [planes, numel], least significant plane first
    n: nn.Parameter
    beta: Tensor  # 0-dim; the temperature
    mask: Tensor  # [N]: DROPPED, LEARNED or FILLED; says nothing until the freeze

    def __init__(self, weight: Tensor, planes: int, masks: str = "ordered"):
        super().__init__()
        self.shape, size = weight.shape, weight.numel()
        self.kin = uuid4().hex  # the same in all copies
        self.ahead: Tensor | None = None  # within :func:`computed_ahead`
        self.held: HeldWeight | None = None  # from :meth:`hold` to the freeze
        logits = () if masks == "ordered" else (planes,)
        for name, shape in (("q", logits), ("scale", ()), ("p", (planes, size)), ("n", (planes, size))):
            value = weight.detach().new_zeros(shape)
            self.register_parameter(name, nn.Parameter(value, requires_grad=weight.requires_grad))
        self.register_buffer("beta", weight.detach().new_full((), math.inf))
        self.register_buffer("mask", weight.detach().new_full((planes,), DROPPED))
        self.was_hard = True  # when last looked at, see ``hard``
        self.load_float(weight)
        self.alive.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.alive.add(self)

    @property
    def frozen(self) -> bool:
        """Whether the choice of planes is a constant."""
        return self.q.ndim == 2

    @property
    def available(self) -> int:
        """Number of planes N there were to choose from."""
        return len(self.mask)

    @property
    def open(self) -> Tensor:
        """Which planes are kept at present, bool ``[N]``: those whose logit is above 0, or as frozen."""
        return self.mask > 0.5 if self.frozen else self.logits > 0

    @property
    def ordered(self) -> bool:
        """Whether planes open in order, by one precision; says nothing once frozen."""
        return self.q.ndim == 0

    @property
    def logits(self) -> Tensor:
        """The logits of the planes' gates, ``[N]``, without a gradient (see :func:`~csq_mini.relaxed.plane_logits`).

        They say nothing once frozen.
        """
        # Detached first: two threads that build a graph on q, to look and to train, have locked each other out.
        return plane_logits(at_least_float32(self.q.detach())[0], self.available)

    @property
    def gates(self) -> Tensor:
        """How far each plane is open at the present temperature, ``[N]``, before the freeze."""
        return plane_gates(at_least_float32(self.q)[0], self.available, math.inf if self.hard else self.beta)

    @property
    def place(self) -> Tensor:
        """The place values 2^b of the planes there are, ``[planes]``."""
        return places(self.mask, len(self.p))

    @property
    def hard(self) -> bool:
        """Whether every gate is 1[x > 0]: the temperature is infinite, or was averaged with one that is."""
        waits = self.training and self.beta.device.type != "cpu"
        if waits or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self.was_hard  # a training step does not wait for its device, and a graph cannot ask
        try:
            return not math.isfinite(self.beta)
        except RuntimeError:  # no values: on the meta device, or within vmap
            return self.was_hard

    def train(self, mode: bool = True) -> Planes:
        super().train(mode)
        if not mode:
            self.was_hard = self.hard
        return self

    def forward(self, hard: bool = False) -> Tensor:
        if self.frozen:
            refuse_old_wrapper(self.p)
        if self.ahead is not None and not hard:
            return self.ahead
        if self.held:
            return self._shaped(self.held.at(self.q, math.inf if hard or self.hard else self.beta))
        total = plain_sum if torch._C._are_functorch_transforms_active() else PlaneSum.apply
        return self._shaped(total(*self._inputs(math.inf if hard or self.hard else self.beta)))

    def _inputs(self, beta: Tensor | float) -> Any:
        """What :func:`~csq_mini.relaxed.plain_sum` takes."""
        return self.p, self.n, self.q, self.scale, self.mask, beta

    def _shaped(self, flat: Tensor) -> Tensor:
        return flat.view(self.shape).to(self.scale.dtype)

    def set_beta(self, beta: float) -> None:
        """Set the temperature, above zero; ``math.inf`` makes every gate hard."""
        self.beta.fill_(beta)
        self.was_hard = math.isinf(beta)

    @torch.no_grad()
    def _round(self, weight: Tensor, scale: Tensor, low: int, high: int) -> None:
        """Take a scale, and set every bit logit to +-0.5 so that planes ``low`` to ``high - 1`` hold the weight."""
        self.scale.copy_(scale)
        step = unit_step(at_least_float32(self.scale)[0], self.available)
        if low < high:
            codes = round_to_grid(weight, step, low, high) // 2**low
            split = signed_digits if self.ordered else integer_to_planes
            for logits, bits in zip((self.p, self.n), split(codes, high - low)):
                logits.copy_(bits).sub_(LOGIT)

    @torch.no_grad()
    def load_float(self, weight: Tensor) -> None:
        """Round a float weight of this shape to the planes there are, all of them open again.

        The scale becomes that of the weight, unless its integers are multiples of the present step already, as those of
        a hardened model are. Raises ValueError for another shape or a weight that is not finite; nothing changes then.
        """
        if weight.shape != self.shape:
            raise ValueError(f"shape {tuple(weight.shape)}, but the layer has {tuple(self.shape)}")
        check_finite(weight)
        weight = weight.to(self.scale.device, self.scale.dtype)
        (scale,) = at_least_float32(quantization_scale(weight))
        kept = self.open.nonzero().flatten().tolist() if self.frozen else range(self.available)
        low, high = (kept[0], kept[-1] + 1) if kept else (0, 0)
        if high - low < self.available and kept:  # the largest weight gets the largest code of those kept
            scale = scale * (2**self.available - 1) / (2**high - 2**low)
        self._round(weight, self.scale.clone() if self._on_grid(weight, low, high) else scale, low, high)
        if not self.frozen:
            self.q.fill_(self.available if self.ordered else LOGIT)
        self.held = None

    def hold(self, weight: Tensor) -> None:
        """Until the freeze, be this weight on as many planes as the precision says; ``p`` and ``n`` count no more."""
        self.held = HeldWeight(weight.to(self.scale), self.available)

    def _on_grid(self, weight: Tensor, low: int, high: int) -> bool:
        """Whether the weight is a product of the present step and integers that planes ``low`` to ``high - 1`` hold."""
        step = unit_step(at_least_float32(self.scale)[0], self.available)
        return bool(step) and torch.equal((step * round_to_grid(weight, step, low, high)).to(weight.dtype), weight)

    @torch.no_grad()
    def freeze(self, count: int, weight: Tensor | None = None) -> None:
        """Keep ``count`` contiguous planes for good, and round the present weight onto them, or another of its shape.

        The nearest grid is taken, as ``csq_mini.nearest`` finds it. Planes in it that the search had closed are
        marked as filled. All bit logits go back to +-0.5, where the finetune starts, as in continuous sparsification
        (arXiv 1912.04427).
        """
        planes, weight = self.available, self.held.weight if self.held and weight is None else weight
        (scale,) = at_least_float32(self.scale if weight is None else quantization_scale(weight).to(self.scale))
        weight = self() if weight is None else weight.to(self.scale)
        scale, high = nearest_grid(weight, scale, planes, count)
        self.mask[high - count : high] = torch.where(self.open, LEARNED, FILLED)[high - count : high].to(self.mask)
        self._drop(count)
        self._round(weight, scale, high - count, high)

    def _drop(self, count: int) -> None:
        """Have ``count`` rows in place of all planes. The old tensors give their memory back."""
        for other in self.alive - {self}:
            for parameter in other.parameters() if other.kin == self.kin and not other.frozen else ():
                parameter.__class__ = OutdatedParameter
        size, ended, self.held = self.p.shape[1], self.logits.to(self.q.dtype, copy=True)[None], None
        for name, shape in (("q", ended.shape), ("p", (count, size)), ("n", (count, size))):
            old = getattr(self, name)
            old.data, old.grad = old.new_empty(0), None  # first, so that old and new are never there at once
            setattr(self, name, nn.Parameter(old.new_empty(shape), old.requires_grad))
            old.__class__ = Retired
        self.q.copy_(ended)
        self.scale.__class__ = nn.Parameter  # an OutdatedParameter no more

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        q = state_dict.get(prefix + "q")
        if q is not None and self.frozen != (q.ndim == 2):
            args[-1].append(other_phase(prefix[:-1], self.frozen))
            return
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.was_hard = self.hard


def csq_layers(model: nn.Module) -> dict[str, Planes]:
    """The planes of a model's converted layers, by the layer's dotted name; ValueError if there is none."""
    found = {k.rpartition(".")[0]: m for k, m in named_modules(model) if isinstance(m, Planes)}
    if not found:
        raise ValueError(f"{type(model).__name__} has no converted layer: call csq.convert(model) first")
    return found


def has_planes(model: nn.Module) -> bool:
    """Whether a layer of the model is converted."""
    return any(isinstance(m, Planes) for m in unwrap(model).modules())


@contextmanager
def computed_ahead(model: nn.Module) -> Iterator[None]:
    """Within it all weights of a converted model are those computed on entering, in one go: the faster way to train."""
    layers = [planes for planes in csq_layers(model).values() if not (planes.hard or planes.held)]
    inputs = [t for planes in layers for t in planes._inputs(planes.beta)]
    try:
        for planes, flat in zip(layers, AllWeights.apply(*inputs) if layers else ()):
            planes.ahead = planes._shaped(flat)
        yield
    finally:
        for planes in layers:
            planes.ahead = None
