"""Parameter groups and optimizers: at which rate, and with which weight decay, each parameter trains."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .activations import PACT
from .bits import at_least_float32
from .check import number, unknown, whole
from .modules import unwrap
from .planes import Planes

PRECISIONS = "precisions"  # name of their group
PACE = 1.5  # how often a precision could cross all its planes in one search
MEAN, SQUARE, TINY = 40, 4, 1e-12  # its averages run over a 40th and a 4th of the search
TURNS = 60.0  # with Adam: what a bit logit, which starts at +-0.5, can travel in a phase at the full rate


def parameter_groups(
    model: nn.Module, lr: float, logit_lr: float | None = None, weight_decay: float = 0.0, *, steps: int = 1000
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer. Call it after :func:`convert`, and again after ``budget.freeze()``.

    ==================  ====================================  =============================  ================
    group               parameters                            rate                           decay
    ==================  ====================================  =============================  ================
    bit logits          ``p``, ``n`` of converted layers      ``logit_lr``                   0
    precisions          ``q`` of layers with ordered masks    1.5 N / ``steps``              0
    mask logits, |W|    ``q`` of the layers of that size,     lr * mean size / size, at      0
                        with free masks                       most 10 lr
    scale, |W|          ``scale`` of the layers of that size  lr / sqrt(|W| (2^N - 1))       0
    activation clips    ``alpha`` of :class:`PACT`            ``lr``                         ``weight_decay``
    norms and biases    float parameters up to 1 dimension    ``lr``                         0
    float weights       everything else                       ``lr``                         ``weight_decay``
    ==================  ====================================  =============================  ================

    Logits never decay: one that has gone to 0 is a bit that has not decided. The budget pulls at a free mask in
    proportion to its layer's size, so rates in inverse proportion let all layers move at the same pace; with equal
    rates the large ones close before the small ones have moved. A scale changes all weights of its layer at once, hence
    its small rate, the step-size rule of LSQ (arXiv 1902.08153). Decay is what pulls clips down (PACT, arXiv
    1805.06085). Precisions want the rule of :func:`optimizer`; plain SGD moves them by their gradient, which is small.

    Args:
        model: converted or float.
        lr: rate of what is not a logit, at least 0.
        logit_lr: rate of the bit logits; None is ten times ``lr``.
        weight_decay: at least 0.
        steps: of the search, at least 1; for ordered masks alone.

    Raises ValueError for a rate or decay that is negative, infinite or not a number.

    Returns:
        Groups, each with a ``name``. Empty ones are left out, and so are parameters that need no gradient.
    """
    lr, weight_decay, steps = number("lr", lr), number("weight_decay", weight_decay), whole("steps", steps, 1)
    logit_lr = 10 * lr if logit_lr is None else number("logit_lr", logit_lr)
    modules = list(unwrap(model).modules())
    sizes = [m.shape.numel() for m in modules if isinstance(m, Planes)]
    mean = sum(sizes) / max(len(sizes), 1)
    groups: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    for module in modules:
        for key, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad or id(parameter) in seen:
                continue
            if key == "q" and isinstance(module, Planes) and module.frozen:
                continue  # it counts no more
            seen.add(id(parameter))
            name, rate = _group_of(module, key, parameter, lr, logit_lr, mean, steps)
            decay = weight_decay if name in ("float weights", "activation clips") else 0.0
            group = groups.setdefault(name, {"params": [], "lr": rate, "weight_decay": decay, "name": name})
            group["params"].append(parameter)
    return sorted(groups.values(), key=lambda group: group["name"])


def _group_of(
    module: nn.Module, key: str, parameter: Tensor, lr: float, logit_lr: float, mean: float, steps: int
) -> tuple[str, float]:
    if isinstance(module, Planes):
        size = max(module.shape.numel(), 1)
        if key == "q" and module.ordered:
            return PRECISIONS, PACE * module.available / steps
        if key == "q":
            return f"mask logits, |W| = {size}", lr * min(mean / size, 10)
        if key == "scale":
            return f"scale, |W| = {size}", lr / math.sqrt(size * (2**module.available - 1))
        return "bit logits", logit_lr
    if isinstance(module, PACT):
        return "activation clips", lr
    return "norms and biases" if parameter.ndim <= 1 else "float weights", lr


class Paced(torch.optim.Optimizer):
    """Mixin that moves precisions at their own pace, whatever the optimizer, its learning rate and its schedule.

    A precision crosses up to N planes in one search, however long that is, and however large the loss and the layer.
    So it moves by ``pace`` times the gradient's mean over its root mean square, both running: Adam's rule (arXiv
    1412.6980) at a constant rate. A rate that decays leaves the last planes half closed. The averages run over shares
    of the search; over a number of steps, a short search would answer the budget too late and shoot past its target.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group.get("name") == PRECISIONS:
                self._move(group["params"], group["pace"], group["steps"])
        super().step()
        return loss

    def _move(self, precisions: list[Tensor], pace: float, steps: int) -> None:
        grads = [torch.zeros_like(k) if k.grad is None else k.grad for k in precisions]
        (grad,), state = at_least_float32(torch.stack(grads)), self.state[precisions[0]]
        if not state:  # of all of them together, which takes fewer steps on a GPU than one each
            state |= {name: torch.zeros_like(grad) for name in ("mean", "square", "step")}
        step, by_mean, by_square = state["step"].add_(1), min(MEAN / steps, 1.0), min(SQUARE / steps, 1.0)
        mean = state["mean"].lerp_(grad, by_mean) / (1 - (1 - by_mean) ** step)
        square = state["square"].lerp_(grad.square(), by_square) / (1 - (1 - by_square) ** step)
        for k, by in zip(precisions, (pace * mean / square.sqrt_().add_(TINY)).unbind()):
            k.sub_(by.to(k.dtype))
            k.grad = None  # nothing left for the rule of the others


class PacedSGD(Paced, torch.optim.SGD):
    """SGD, but for precisions."""


class PacedAdam(Paced, torch.optim.Adam):
    """Adam, but for precisions."""


class PacedAdamW(Paced, torch.optim.AdamW):
    """AdamW, but for precisions."""


KINDS: Mapping[str, tuple[Any, float]] = {
    "sgd": (PacedSGD, 0.1), "adam": (PacedAdam, 1e-3), "adamw": (PacedAdamW, 1e-3),
}  # fmt: skip
"""Optimizers that :func:`optimizer` makes, each with a usual rate of the weights."""


def optimizer(
    model: nn.Module, kind: str = "sgd", lr: float | None = None, *, steps: int, logit_lr: float | None = None,
    weight_decay: float = 0.0, momentum: float = 0.9,
) -> torch.optim.Optimizer:  # fmt: skip
    """An optimizer for a converted model, its rates chosen so that the search arrives. Make it anew after the freeze.

    It is torch's SGD (with Nesterov momentum), Adam or AdamW over :func:`parameter_groups`, but for the precisions of
    ordered masks: they have a pace of their own, which no learning rate and no scheduler changes.

    Args:
        model: converted or float, searching or frozen.
        kind: "sgd", "adam" or "adamw".
        lr: peak rate of weights, norms and biases; None is 0.1 for SGD, 0.001 for the others.
        steps: optimizer steps in this phase, the search or the finetune.
        logit_lr: peak rate of the bit logits; None is ten times ``lr`` for SGD and, because Adam moves a logit by its
            rate whatever the gradient, ``60 / steps`` for the others, with which a bit can turn many times.
        weight_decay: of float weights and activation clips.
        momentum: of SGD, and beta_1 of the others; at least 0, below 1.

    Raises ValueError for an unknown kind, and a number that is out of range.
    """
    if kind not in KINDS:
        raise ValueError(unknown("kind of optimizer", kind, KINDS))
    cls, usual = KINDS[kind]
    lr = usual if lr is None else number("lr", lr)
    if not 0 <= number("momentum", momentum) < 1:
        raise ValueError(f"momentum must be at least 0 and below 1, got {momentum!r}")
    if logit_lr is None and kind != "sgd":
        logit_lr = TURNS / whole("steps", steps, 1)
    groups = parameter_groups(model, lr, logit_lr, weight_decay, steps=steps)
    for group in groups:
        if group["name"] == PRECISIONS:
            group |= {"pace": group["lr"], "steps": steps}
    rule = {"momentum": momentum, "nesterov": momentum > 0} if kind == "sgd" else {"betas": (momentum, 0.999)}
    return cls(groups, lr=lr, fused=True, **rule)
