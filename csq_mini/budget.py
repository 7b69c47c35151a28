"""The budget: how large the model is, the term that steers it, and the freeze that settles it.

Source: CSQ (arXiv 2212.02770), budget-aware growing and pruning, here weighted by layer size; its sign-changing
regulariser comes from structured continuous sparsification (arXiv 2007.15353).
"""

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .bits import at_least_float32
from .check import Diverged, floors, kept_counts, number
from .planes import Planes, csq_layers
from .relaxed import no_autocast
from .rewind import Start
from .targets import capacity, check_target, planes_in

ARRIVES = 0.75  # progress of the search at which the line reaches the target
ARRIVES_HELD = 0.5  # the same for held weights, which learn nothing on the way down, so that precisions can settle
SMALL, MOST = 2e-4, 14.0  # lambda of ordered masks is SMALL sinh(mu), and mu lies in [-MOST, MOST]
FOLLOWS = 150.0  # mu grows by strength times this, for a bit above the line all through the search
LARGE_CUT = 0.25  # bits a weight; a freeze that takes away more warns


class Budget:
    """Steers the size-weighted precision of a converted model to a target, and keeps it there.

    B = sum_l |W_l| * (planes kept in l) / sum_l |W_l| is the model's present precision in bits a weight. Above what is
    wanted the penalty closes planes; below it they grow again.

    Args:
        model: a converted model, wrapped or not.
        target: tau, the average precision wanted, in paper bits (planes) a weight.
        strength: how firmly it steers: lambda of free masks, the pace at which lambda follows of ordered ones; see
            :meth:`penalty`.
        floor: least number of planes a layer keeps, or a dict of fnmatch patterns of layer names with one each. The
            first pattern that matches a name counts; a layer that matches none keeps at least 1.
        growth: False never lets the pull become weaker or turn round: planes only close, as in BSQ (arXiv 2102.10462).
        weighted: False counts every layer alike in the penalty, as the official CSQ code does. :meth:`bits` and
            :meth:`freeze` still go by size.

    Raises:
        ValueError: for a target that cannot be reached (the text names the range), a strength below 0, a floor
            outside 0..N, a pattern that matches no layer, layers with different numbers or kinds of planes, or a
            model frozen above the target.
    """

    def __init__(
        self, model: nn.Module, target: float, strength: float = 0.2, floor: int | Mapping[str, int] = 1, *,
        growth: bool = True, weighted: bool = True,
    ):  # fmt: skip
        self.model, self.layers = model, csq_layers(model)
        self.weights = {name: math.prod(planes.shape) for name, planes in self.layers.items()}
        self.total = max(sum(self.weights.values()), 1)
        if len({planes.available for planes in self.layers.values()}) > 1:
            raise ValueError("the layers have different numbers of planes: convert the whole model in one call")
        if len({planes.q.ndim for planes in self.layers.values()}) > 1:
            raise ValueError("some layers have ordered masks and some free ones: convert the whole model in one call")
        self.floor = floors(self._available(), floor)
        self.target = check_target(target, self.weights, self._available(), self.floor)
        self.strength = number("strength", strength, hint=" (0 only measures)")
        self.growth, self.weighted = growth, weighted
        self.cut = 0.0  # bits a weight that the freeze took away
        self.steered = False  # whether the penalty was asked for, which makes it a search
        self.progress = 0.0  # of the search, when it was
        self._mu = 0.0
        self._cache: tuple[Tensor, ...] | None = None
        if self.frozen and self.bits() > self.target:
            raise ValueError(f"the model is frozen at {self.bits():g} bits a weight, above the target {target!r}")

    def bits(self) -> float:
        """B, the present hard precision in paper bits a weight (waits for the device)."""
        return sum(self.weights[k] * int(planes.open.sum()) for k, planes in self.layers.items()) / self.total

    @property
    def frozen(self) -> bool:
        """Whether the masks are constants: after :meth:`freeze`, or in a model loaded so."""
        return all(planes.frozen for planes in self.layers.values())

    def line(self, progress: float) -> float:
        """Bits a weight wanted at ``progress``, in [0, 1]: from N straight down to the target, and then on it."""
        most = next(iter(self._available().values()))
        arrives = ARRIVES_HELD if any(planes.held for planes in self.layers.values()) else ARRIVES
        return most + (self.target - most) * min(progress / arrives, 1.0)

    def penalty(self, progress: float | None = None) -> Tensor:
        """The term to add to the loss, 0-dim; 0 once frozen. Waits for no device.

        R = sum_l (|W_l| / |W|) sum_b f(gate b of layer l), in [0, N], is the precision the relaxed masks stand for.

        *Free masks*: strength * (B - target) * R, the paper's rule. (B - target) carries no gradient: it only says
        which way to pull, and how hard. Below the target its sign flips. The best ``floor`` planes of a layer are not
        pulled at: they stay open anyway, and a network with an empty layer computes nothing.

        *Ordered masks*: lambda * sum_l (|W_l| / |W|) k_l, with precisions k held between ``floor`` and N. Lambda is a
        multiplier found by dual ascent (arXiv 2208.04425): it grows while R is above :meth:`line`, and falls below,
        past zero too, which opens planes.

        Args:
            progress: share of the search that is done, in [0, 1], such as step / steps; only ordered masks need it.
        """
        first, *_ = layers = list(self.layers.values())
        if self.frozen:
            return first.scale.new_zeros(())
        self.steered = True
        with no_autocast(first.p):
            if not first.ordered:
                return self._free(layers)
            if progress is None:
                raise ValueError("ordered masks follow a line to the target: call budget.penalty(step / search_steps)")
            return self._ordered(layers, number("progress", progress, 0, 1, hint=": pass step / search_steps"))

    def _free(self, layers: list[Planes]) -> Tensor:
        q = torch.stack([planes.q.detach() for planes in layers])  # [layers, N]
        share, floor, _ = self._constants(q)
        excess = share @ (q > 0).to(q.dtype).sum(1) - self.target  # B - target
        excess = excess if self.growth else excess.clamp(min=0)
        relaxed = torch.stack([planes.gates for planes in layers])
        # 0 for a layer's best plane; of equal ones (all, at the start) the most significant is best.
        rank = q.flip(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).flip(1)
        relaxed = torch.where(rank < floor[:, None], relaxed.detach(), relaxed)
        return self.strength * excess * (share @ relaxed.sum(1))

    def _ordered(self, layers: list[Planes], progress: float) -> Tensor:
        (k,), planes = at_least_float32(torch.stack([planes.q for planes in layers])), layers[0].available
        share, floor, mu = self._constants(k)
        with torch.no_grad():
            self._follow(mu, share @ torch.stack([planes.gates.sum() for planes in layers]), progress)
        inside = torch.maximum(k, floor).clamp(max=planes)
        price = SMALL * mu.sinh()
        # The way back from outside is as steep as the pull: an optimizer that goes by past gradients would not see it.
        return price * (share @ inside) + (1 + price.abs()) * (share @ (k - inside).square())

    def _follow(self, mu: Tensor, size: Tensor, progress: float) -> None:
        """Let mu grow in proportion to how far R is above the line, and for how long.

        A multiplier that is adapted until a constraint holds needs no tuning, where a fixed strength stops at whatever
        size its pull and the loss agree on. (Dual ascent as in arXiv 2208.04425. The hyperbolic sine is there because
        the pull that closes the last planes is thousands of times that of the first, and because pulls have two signs.)
        """
        above = size - self.line(progress)
        above = above if self.growth else above.clamp(min=0)
        passed, self.progress = max(progress - self.progress, 0.0), progress
        mu.add_(FOLLOWS * self.strength * passed * above).clamp_(-MOST, MOST)

    def _constants(self, like: Tensor) -> tuple[Tensor, ...]:
        """Each layer's share in B and its floor, ``[layers]``, and mu, brought to the device of the logits once."""
        if self._cache is None or (self._cache[0].device, self._cache[0].dtype) != (like.device, like.dtype):
            sizes = [n / self.total if self.weighted else 1 / len(like) for n in self.weights.values()]
            values = sizes, list(self.floor.values()), self.mu
            self._cache = tuple(torch.tensor(v, dtype=like.dtype, device=like.device) for v in values)
        return self._cache

    @property
    def multiplier(self) -> float:
        """Lambda of ordered masks at present (waits for the device)."""
        return SMALL * math.sinh(self.mu)

    @property
    def mu(self) -> float:
        """What lambda is made of (waits for the device)."""
        return float(self._cache[2]) if self._cache else self._mu

    def state_dict(self) -> dict[str, float]:
        """What steering has come to, for :meth:`load_state_dict` of a budget of the same kind."""
        return {"mu": self.mu, "progress": self.progress, "steered": self.steered, "cut": self.cut}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from another budget's state."""
        self._mu, self.progress, self.cut = state["mu"], state["progress"], state["cut"]
        self.steered, self._cache = bool(state["steered"]), None

    @torch.no_grad()
    def freeze(
        self, like: Mapping[str, Tensor] | None = None, *, rewind: Mapping[str, Tensor] | None = None
    ) -> dict[str, int]:  # fmt: skip
        """Settle every layer's precision for good, at most at the target, and start the finetune.

        Walks the planes from the largest mask logit down and keeps each that still fits, after every layer's floor. In
        a tie the more significant plane comes first, then the earlier layer. This gives each layer a *number* of
        planes, which it keeps as one contiguous run, with its weight rounded onto it (:meth:`Planes.freeze`).

        The other planes are gone: ``p`` and ``n`` are new and shorter, and ``q`` counts no more. Make the optimizer,
        DDP wrapper and EMA copies again after this; the old ones raise an error when they are next used.

        Args:
            like: a state_dict saved after a freeze, whose numbers of planes are taken, so that it can be loaded next.
            rewind: a state_dict of the float model before the search. Only the scheme is kept then: weights and all
                else go back to what they were (weight rewinding, arXiv 2003.02389). None rounds the present weights.

        Returns the planes kept by layer name.

        Raises ValueError if the masks are frozen already, a layer has diverged to NaN or infinity, or ``like`` or
        ``rewind`` does not fit. Warns if this cuts off more than a quarter of a bit a weight that the search had left
        (``cut`` says how much): what those planes are worth was then never asked.
        """
        if any(planes.frozen for planes in self.layers.values()):
            raise ValueError("the masks are frozen already; convert a fresh model to search again")
        for name, planes in self.layers.items():
            if not (planes().isfinite().all() and planes.q.isfinite().all()):
                raise Diverged(f"layer {name} has diverged (NaN or infinity): lower its learning rate")
        start = None if rewind is None else Start(rewind, self.model, self.layers)
        counts = self._counts() if like is None else kept_counts(like, self._available())
        if (size := planes_in(self.weights, counts)) > capacity(self.target, self.weights):
            raise ValueError(f"like keeps {size / self.total:g} bits a weight, above the target {self.target:g}")
        before = self.bits()
        for name, planes in self.layers.items():
            planes.freeze(counts[name], start.weights[name] if start else None)
        if start:
            start.load_others()
        self.cut = max(before - self.bits(), 0.0)
        if self.steered and like is None and self.cut > LARGE_CUT:
            warnings.warn(f"the search ended at {before:.2f} bits a weight, and the freeze cut off {self.cut:.2f} of "
                          f"them to reach the target {self.target:g}: search for more steps, with csq.optimizer",
                          stacklevel=3)  # fmt: skip
        return counts

    def _counts(self) -> dict[str, int]:
        """Planes each layer may keep, counted in whole weights and planes."""
        counts, order = dict(self.floor), []
        room = capacity(self.target, self.weights) - planes_in(self.weights, counts)
        for index, (name, planes) in enumerate(self.layers.items()):
            logits = planes.logits.double().cpu().tolist()
            ranked = sorted((-x, -b) for b, x in enumerate(logits))
            order += [(*key, index, name) for key in ranked[counts[name] :]]  # the floor has the best
        for *_, name in sorted(order):
            if self.weights[name] <= room:
                counts[name] += 1
                room -= self.weights[name]
        return counts

    def _available(self) -> dict[str, int]:
        return {name: planes.available for name, planes in self.layers.items()}
