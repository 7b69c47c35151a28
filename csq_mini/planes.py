"""A layer whose weight is a sum of gated bit planes.

The mixin :class:`CSQLayer` stands before a layer's own class and computes ``weight`` from planes,
so that one class serves convolutions, linear layers and embeddings. How a model gets there and
back is in ``conversion.py``.
Source: CSQ (arXiv 2212.02770), the relaxed weight with bit and mask gates.
"""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .bits import at_least_float32, float_to_planes, integer_to_planes, planes_to_integer, round_to_grid
from .gates import LOGIT, gate

UNDECIDED, DROPPED, LEARNED, FILLED = -1, 0, 1, 2
"""What a layer's ``mask`` buffer says of a plane: the search still decides, or the frozen verdict."""

OWN_NAMES = ("p", "n", "q", "scale", "beta", "gain", "place", "mask", "shape", "hard", "frozen", "rows", "planes",
             "open", "codes", "scheme", "hard_weight", "set_bits", "set_beta", "freeze", "load_float",
             "float_class", "csq")  # fmt: skip
"""Attributes that a converted layer has beside those of its class, whose own may not be called so."""


def gain(beta: float, frozen: bool) -> float:
    """What the step is multiplied by so that a new layer's weight is the same at every temperature.

    Every logit starts at +-0.5, so at a finite temperature an open bit counts only
    f(0.5) - f(-0.5) = tanh(beta / 4), and an open mask f(0.5). Dividing by both keeps the function
    of the network at the start of a search, batch norm or not; the gain falls to 1 as beta grows
    and *is* 1 at ``math.inf``. Original continuous sparsification (arXiv 1912.04427) divides by its
    gate's initial value for the same reason. A frozen layer's mask is constant and needs no gain.
    """
    open_bit = math.tanh(beta * LOGIT / 2)
    return 1 / open_bit if frozen else (1 + math.exp(-beta * LOGIT)) / open_bit


class PlaneSum(torch.autograd.Function):
    """The relaxed weight of one layer, in one pass that stores nothing but its own inputs.

    weight = step0 * gain * sum_b 2^b [f(p_b) - f(n_b)] m_b, with step0 = scale / (2^N - 1) and m_b
    = f(q_b), or the frozen mask, for which only the ``rows`` from the lowest to the highest kept
    plane are looked at (None: all of them). The sum comes first and in float32 at least: with hard
    gates it is an integer, and one multiplication makes it a weight. The backward pass computes the
    gates again, because keeping them would cost 64 bytes a weight.
    Source: CSQ (arXiv 2212.02770), the bi-level relaxed weight.
    """

    @staticmethod
    def forward(
        p: Tensor, n: Tensor, q: Tensor, scale: Tensor, place: Tensor, beta: Tensor | float, gain: Tensor | float,
        mask: Tensor | None, rows: slice | None,
    ) -> Tensor:  # fmt: skip
        steps = 2 ** len(p) - 1
        p, n, q, place, mask = _cut(rows, p, n, q, place, mask)
        p, n, q, scale, place = at_least_float32(p, n, q, scale, place)
        with no_autocast(p):
            m = gate(q, beta) if mask is None else (mask > DROPPED).to(q.dtype)  # [rows]
            difference = gate(p, beta).sub_(gate(n, beta))  # [rows, numel]
            return (scale / steps * gain) * torch.mv(difference.t(), place * m)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.rows = inputs[8]
        ctx.hard = isinstance(inputs[5], float)  # else beta and gain are tensors, saved with the rest
        ctx.save_for_backward(*(None if isinstance(t, float) else t for t in inputs[:8]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        full_p, full_n, full_q, full_scale, place, beta, gain, mask = ctx.saved_tensors
        rows, steps = ctx.rows, 2 ** len(full_p) - 1
        beta, slope, gain = (math.inf, 0.0, 1.0) if ctx.hard else (beta, beta, gain)
        p, n, q, place, mask = _cut(rows, full_p, full_n, full_q, place, mask)
        p, n, q, scale, place = at_least_float32(p, n, q, full_scale, place)
        with no_autocast(p):
            m = gate(q, beta) if mask is None else (mask > DROPPED).to(q.dtype)
            f, g = gate(p, beta), gate(n, beta)
            worth, unit = place * m, gain / steps
            inner = torch.mv(f, grad) - torch.mv(g, grad)  # [rows]: the gradient along each plane
            column = (scale * unit * slope) * worth  # times f (1 - f) it is the slope of the weight by p
            grad_q = column * inner * (1 - m)
            grad_scale = unit * (worth @ inner)
            # Large tensors change in place: new ones cost more than the sums.
            grad_p = f.addcmul_(f, f, value=-1).mul_(grad).mul_(column.view(-1, 1))
            grad_n = g.addcmul_(g, g, value=-1).mul_(grad).mul_(-column.view(-1, 1))
        grads = (_at_rows(t, rows, full) for t, full in zip((grad_p, grad_n, grad_q), (full_p, full_n, full_q)))
        return *grads, grad_scale.to(full_scale.dtype), None, None, None, None, None


def no_autocast(t: Tensor) -> AbstractContextManager[Any]:
    """Keeps float32 arithmetic float32 where the caller has autocast on; free where it is off."""
    kind = t.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _cut(rows: slice | None, *tensors: Any) -> tuple[Any, ...]:
    """The rows of each tensor (None stays None), or the tensors as they are where all rows count."""
    return tensors if rows is None else tuple(None if t is None else t[rows] for t in tensors)


def _at_rows(part: Tensor, rows: slice | None, full: Tensor) -> Tensor:
    """``part`` in its rows of a tensor like ``full``, zero elsewhere."""
    if rows is None:
        return part.to(full.dtype)
    whole = torch.zeros_like(full)
    whole[rows] = part
    return whole


@dataclass(frozen=True)
class Scheme:
    """What a hardened layer remembers of its planes, as its attribute ``csq``."""

    available: int  # N, the planes there were to choose from
    kept: tuple[int, ...]
    filled: tuple[int, ...]  # those kept that the search had closed
    step: float  # above zero
    codes: Tensor | None = None  # only where a half-precision weight cannot tell its integers apart

    @property
    def planes(self) -> str:
        """A letter a plane, the most significant first: 1 learned, F filled at the freeze, . dropped."""
        letters = ("F" if b in self.filled else "1" if b in self.kept else "." for b in range(self.available))
        return "".join(letters)[::-1]


class CSQLayer(nn.Module):
    """Mixin that computes ``weight`` from bit planes; :func:`convert` puts it before a layer's class.

    Attributes:
        p, n: bit logits, ``[planes, numel]``.
        q: mask logits, ``[planes]``.
        scale: 0-dim; the weight that all planes together hold.
        beta, gain: buffers, 0-dim; the temperature, and what makes up for it (:func:`gain`).
        place: buffer, ``[planes]``; the constants 2^b.
        mask: buffer, int8 ``[planes]``; -1 in the search, then 0 dropped, 1 learned, 2 filled.
        hard, frozen, rows: what ``beta`` and ``mask`` say, as two bools and, once frozen, the slice
            from the lowest to the highest kept plane: a forward pass need not ask the device.
    """

    p: nn.Parameter
    n: nn.Parameter
    q: nn.Parameter
    scale: nn.Parameter
    beta: Tensor
    gain: Tensor
    place: Tensor
    mask: Tensor
    shape: torch.Size
    hard: bool
    frozen: bool
    rows: slice | None
    float_class: type[nn.Module]

    @property
    def weight(self) -> Tensor:
        """The layer's weight at the present temperature, computed anew at each access."""
        return self._weight_at(*((math.inf, 1.0) if self.hard else (self.beta, self.gain)))

    def _weight_at(self, beta: Tensor | float, gain: Tensor | float) -> Tensor:
        mask = self.mask if self.frozen else None
        flat = PlaneSum.apply(self.p, self.n, self.q, self.scale, self.place, beta, gain, mask, self.rows)
        return flat.view(self.shape).to(self.scale.dtype)

    def hard_weight(self) -> Tensor:
        """The weight with every gate hard, whatever the temperature."""
        return self._weight_at(math.inf, 1.0)

    @property
    def planes(self) -> int:
        """Number of planes N there are, open or closed."""
        return self.p.shape[0]

    @property
    def open(self) -> Tensor:
        """Which planes are kept at present, bool ``[planes]``: 1[q > 0], or the frozen mask."""
        return self.mask > DROPPED if self.frozen else self.q.detach() > 0

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The weight's integers in units of plane 0, all gates hard: int64 ``[numel]``."""
        kept = self.open.view(-1, 1)
        codes = planes_to_integer((self.p > 0) & kept, (self.n > 0) & kept)
        return -codes if self.scale < 0 else codes  # so that the step is above zero

    @torch.no_grad()
    def scheme(self) -> Scheme:
        """Planes kept and the step of the layer, all gates hard."""
        kept = tuple(self.open.nonzero().flatten().tolist())
        filled = tuple((self.mask == FILLED).nonzero().flatten().tolist())
        (scale,) = at_least_float32(self.scale)
        step0 = float((scale / (2**self.planes - 1)).abs())
        return Scheme(self.planes, kept, filled, step0 * 2 ** min(kept, default=0))

    @torch.no_grad()
    def set_bits(self, codes: Tensor) -> None:
        """Set every bit logit to +-0.5 so that the hard weight has these integers (any shape)."""
        for logits, bits in zip((self.p, self.n), integer_to_planes(codes, self.planes)):
            logits.copy_(torch.where(bits, LOGIT, -LOGIT))

    @torch.no_grad()
    def freeze(self, count: int) -> None:
        """Keep ``count`` contiguous planes for good and round the present weight onto them.

        Of all runs of that many planes, each at eight scales within an octave, it takes the grid with
        the least squared rounding error; of equals the most significant run, then the present scale.
        Planes in it that the search had closed are marked as filled. Rounding sets every bit, so a
        filled plane starts with what it can add, and every bit logit starts its second annealing at
        +-0.5, as original continuous sparsification (arXiv 1912.04427) rewinds what has decided itself.
        """
        weight, (scale,) = self.weight, at_least_float32(self.scale)
        grids = [(scale * 2 ** (-part / 8), high) for high in range(self.planes, count - 1, -1) for part in range(8)]
        errors = []
        for finer, high in grids:
            step = finer / (2**self.planes - 1)
            rounded = step * round_to_grid(weight, step, high - count, high)
            errors.append(float((rounded - weight).double().square().sum()))
        scale, high = grids[errors.index(min(errors))]  # of equals the first
        kept = torch.zeros_like(self.mask, dtype=torch.bool)
        kept[high - count : high] = True
        self.mask.copy_(torch.where(kept, torch.where(self.q > 0, LEARNED, FILLED), DROPPED))
        self.scale.copy_(scale)
        self._read_state()
        self.set_bits(round_to_grid(weight, self.scale / (2**self.planes - 1), high - count, high))

    @torch.no_grad()
    def load_float(self, weight: Tensor) -> None:
        """Round a float weight of the layer's shape to the planes it has, or is frozen to.

        Raises ValueError if a weight is not finite; nothing is changed then.
        """
        scale, positive, negative = float_to_planes(weight, self.planes)
        low, high = 0, self.planes
        if self.rows is not None and self.rows.stop > self.rows.start:
            low, high = self.rows.start, self.rows.stop
            scale = scale * (2**self.planes - 1) / (2**high - 2**low)
        self.set_bits(round_to_grid(weight, scale / (2**self.planes - 1), low, high))
        self.scale.copy_(scale)
        self.q.fill_(LOGIT)

    def set_beta(self, beta: float) -> None:
        """Set the temperature, above zero; ``math.inf`` makes every gate hard."""
        self.beta.fill_(beta)
        self.hard = math.isinf(beta)
        self.gain.fill_(gain(beta, self.frozen))

    def _read_state(self) -> None:
        """Renew what follows from ``mask`` and ``beta``, after they have changed."""
        self.frozen = bool((self.mask != UNDECIDED).all())
        kept = self.open.nonzero().flatten().tolist() if self.frozen else []
        self.rows = slice(min(kept, default=0), max(kept, default=-1) + 1) if self.frozen else None
        self.set_beta(float(self.beta))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        *_, errors = args
        weight = state_dict.get(prefix + "weight")
        if weight is not None and prefix + "p" not in state_dict:
            self._planes_for(state_dict, prefix, weight, errors)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._read_state()

    def _planes_for(self, state_dict: dict[str, Any], prefix: str, weight: Tensor, errors: list[str]) -> None:
        """Put planes in place of the float weight that a state_dict holds."""
        del state_dict[prefix + "weight"]
        other = copy.deepcopy(self)
        if weight.shape != self.shape:
            errors.append(f"{prefix}weight has shape {tuple(weight.shape)}, the layer {tuple(self.shape)}")
        else:
            try:
                other.load_float(weight.to(self.scale))
            except ValueError as error:
                errors.append(f"{prefix}weight: {error}")
        state_dict.update({prefix + k: getattr(other, k).detach() for k in ("p", "n", "q", "scale", "beta", "mask")})

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made on the fly, so pickle and deepcopy get the float class to make it from.
        return _empty_layer, (self.float_class,), self.__getstate__()


_CLASSES: dict[type[nn.Module], type[CSQLayer]] = {}


def csq_class(base: type[nn.Module]) -> type[CSQLayer]:
    """The subclass of a module class whose weight is computed from planes, the same at each call."""
    if base not in _CLASSES:
        _CLASSES[base] = type(f"CSQ{base.__name__}", (CSQLayer, base), {"float_class": base, "__module__": __name__})
    return _CLASSES[base]


def _empty_layer(base: type[nn.Module]) -> CSQLayer:
    cls = csq_class(base)
    return cls.__new__(cls)
