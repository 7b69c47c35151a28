"""The budget: how large the model is, the term that steers it, and the freeze that settles it.

Source: CSQ (arXiv 2212.02770), budget-aware growing and pruning; its sign-changing regulariser
comes from structured continuous sparsification (arXiv 2007.15353).
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Mapping
from fractions import Fraction
from numbers import Real

import torch
from torch import Tensor, nn

from .conversion import csq_layers
from .gates import gate
from .planes import CSQLayer


class Budget:
    """Steers the size-weighted precision of a converted model to a target, and keeps it there.

    B = sum_l |W_l| * (planes kept in l) / sum_l |W_l| is the model's present precision in bits a
    weight. Above the target the penalty closes planes, below it its sign flips and planes grow.

    Args:
        model: a converted model, wrapped or not.
        target: tau, the average precision wanted, in paper bits (planes) a weight.
        strength: lambda, for R normalised as in :meth:`penalty`.
        floor: planes that every layer keeps at least: a number, or a dict of fnmatch patterns of
            layer names, of which the first that matches counts (a layer that none matches keeps 1).
        growth: False leaves the penalty without a sign: below the target it is 0, and planes only
            close, as in BSQ (arXiv 2102.10462).
        weighted: False counts every layer alike in the penalty, whatever its size, as the official
            CSQ code does. What :meth:`bits` and :meth:`freeze` promise goes by size all the same.

    Raises:
        ValueError: if the target cannot be reached (the text names the range that can), the
            strength is not a number of at least 0, a floor is not an integer in 0..N, a pattern
            matches no layer, layers differ in their number of planes, or the model is frozen above
            the target.

    Source: CSQ (arXiv 2212.02770), budget-aware regularisation, weighted by layer size.
    """

    def __init__(
        self, model: nn.Module, target: float, strength: float = 0.2, floor: int | Mapping[str, int] = 1, *,
        growth: bool = True, weighted: bool = True,
    ):  # fmt: skip
        self.layers = csq_layers(model)
        self.weights = {name: math.prod(layer.shape) for name, layer in self.layers.items()}
        self.total = sum(self.weights.values())
        if len({layer.planes for layer in self.layers.values()}) > 1:
            raise ValueError("the layers have different numbers of planes: convert the whole model in one call")
        self.floor = _floors(self.layers, floor)
        self.target = self._check_target(target)
        self.strength = _check_strength(strength)
        self.growth, self.weighted = growth, weighted
        self._cache: tuple[Tensor, Tensor] | None = None
        if self.frozen and self.bits() > self.target:
            raise ValueError(f"the model is frozen at {self.bits():g} bits a weight, above the target {target!r}")

    def bits(self) -> float:
        """B, the present hard precision in paper bits a weight (waits for the device)."""
        planes = sum(self.weights[name] * int(layer.open.sum()) for name, layer in self.layers.items())
        return planes / max(self.total, 1)

    @property
    def frozen(self) -> bool:
        """Whether the masks are constants: after :meth:`freeze`, or in a model loaded so."""
        return all(layer.frozen for layer in self.layers.values())

    def penalty(self) -> Tensor:
        """The term to add to the loss: strength * (B - target) * R, 0-dim; 0 once frozen.

        R = sum_l (|W_l| / |W|) sum_b f_beta(q_lb), in [0, N], is the precision the relaxed masks
        stand for. (B - target) carries no gradient: it only says which way, and how hard. Nor do a
        layer's ``floor`` best planes: they stay, so there is no use in pulling them down, and a
        layer that closed all its planes would take the network with it. Nothing here waits for the
        device.
        """
        layers = list(self.layers.values())
        if self.frozen:
            return layers[0].q.new_zeros(())
        with torch.autocast(layers[0].q.device.type, enabled=False):
            return self._penalty(layers)

    def _penalty(self, layers: list[CSQLayer]) -> Tensor:
        q = torch.stack([layer.q.detach() for layer in layers])  # [layers, planes]
        share, floor = self._constants(q)
        excess = share @ (q > 0).to(q.dtype).sum(1) - self.target  # B - target
        excess = excess if self.growth else excess.clamp(min=0)
        relaxed = torch.stack([gate(layer.q, math.inf if layer.hard else layer.beta) for layer in layers])
        # 0 for a layer's best plane; of equal ones (all, at the start) the most significant is best.
        rank = q.flip(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).flip(1)
        relaxed = torch.where(rank < floor[:, None], relaxed.detach(), relaxed)
        return self.strength * excess * (share @ relaxed.sum(1))

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Each layer's share in B and its floor, ``[layers]``, brought to the device of the logits once."""
        if self._cache is None or (self._cache[0].device, self._cache[0].dtype) != (like.device, like.dtype):
            sizes = [n / max(self.total, 1) if self.weighted else 1 / len(like) for n in self.weights.values()]
            self._cache = like.new_tensor(sizes), like.new_tensor(list(self.floor.values()))
        return self._cache

    @torch.no_grad()
    def freeze(self) -> dict[str, int]:
        """Settle every layer's precision for good, at most at the target, and start the finetune.

        Walks all planes from the largest mask logit down and keeps each that still fits; a layer's
        floor comes first, equal logits go to the more significant plane, then to the earlier layer.
        So the size is at most the target and no further plane would fit under it. A layer then
        keeps that *number* of planes as one contiguous run, onto which its present weight is
        rounded (see :meth:`csq_mini.layers.CSQLayer.freeze`). Make a new optimizer afterwards.

        Returns:
            Planes kept by layer name.

        Raises:
            ValueError: if the masks are frozen already, or a layer has diverged to NaN or infinity.
        """
        if any(layer.frozen for layer in self.layers.values()):
            raise ValueError("the masks are frozen already; convert a fresh model to search again")
        for name, layer in self.layers.items():
            if not (layer.weight.isfinite().all() and layer.q.isfinite().all()):
                raise ValueError(f"layer {name} has diverged (NaN or infinity): lower its learning rate")
        counts = self._counts()
        for name, layer in self.layers.items():
            layer.freeze(counts[name])
        return counts

    def _counts(self) -> dict[str, int]:
        """Planes each layer may keep, counted in whole weights and planes."""
        counts = dict(self.floor)
        room = self._capacity() - sum(self.weights[name] * k for name, k in counts.items())
        order = []
        for index, (name, layer) in enumerate(self.layers.items()):
            logits = layer.q.detach().double().cpu().tolist()
            ranked = sorted(((-q, -b) for b, q in enumerate(logits)))
            order += [(*key, index, name) for key in ranked[counts[name] :]]  # the floor has the best
        for *_, name in sorted(order):
            if self.weights[name] <= room:
                counts[name] += 1
                room -= self.weights[name]
        return counts

    def _capacity(self) -> int:
        # Through its decimal text: a target of 0.3 means 3/10, not the float just below it.
        return math.floor(Fraction(repr(self.target)) * self.total)

    def _check_target(self, target: float) -> float:
        low = sum(self.weights[name] * k for name, k in self.floor.items())
        high = sum(self.weights[name] * layer.planes for name, layer in self.layers.items())
        number = isinstance(target, Real) and not isinstance(target, bool)
        self.target = value = float(target) if number else math.nan
        if not math.isfinite(value) or not low <= self._capacity() or value > high / max(self.total, 1):
            total = max(self.total, 1)
            raise ValueError(
                f"target {target!r} cannot be reached: with these floors and planes it must lie between "
                f"{math.ceil(1e4 * low / total) / 1e4:g} and {high / total:g} bits a weight"
            )
        return value


def _floors(layers: Mapping[str, CSQLayer], floor: int | Mapping[str, int]) -> dict[str, int]:
    patterns = dict(floor) if isinstance(floor, Mapping) else {"*": floor}
    for pattern, k in patterns.items():
        hits = fnmatch.filter(layers, pattern)
        if not hits:
            near = difflib.get_close_matches(pattern, layers, n=3, cutoff=0.3) or list(layers)[:3]
            raise ValueError(f"floor pattern {pattern!r} matches no layer; near names: {', '.join(near)}")
        most = min(layers[name].planes for name in hits)
        if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= most:
            raise ValueError(f"floor must be an integer from 0 to {most} planes, got {k!r} for {pattern!r}")
    return {name: next((k for p, k in patterns.items() if fnmatch.fnmatch(name, p)), 1) for name in layers}


def _check_strength(strength: float) -> float:
    if isinstance(strength, bool) or not isinstance(strength, Real) or not 0 <= strength < math.inf:
        raise ValueError(f"strength must be a number of at least 0, got {strength!r} (0 only measures)")
    return float(strength)
