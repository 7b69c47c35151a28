"""Parameter groups and optimizers: at which rate, and with which weight decay, each parameter trains."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .activations import PACT
from .check import number, unknown, whole
from .modules import unwrap
from .planes import Planes

PRECISIONS = "precisions"  # name of their group
PACE = 1.5  # how often a precision could cross all its planes in the search, at the full rate


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

    A precision has to cross up to N planes within the search, whatever the loss: its rate follows from the number of
    ``steps``, and holds for optimizers that divide a gradient by its own size, as Adam does and :func:`optimizer` sees
    to with any. Logits never decay: one that has gone to 0 is a bit that has not decided. The budget pulls at a mask in proportion
    to its layer's size, so rates in inverse proportion let all layers move at the same pace; with equal rates the large
    ones close before the small ones have moved. A scale changes all weights of its layer at once, hence its small rate,
    the step-size rule of LSQ (arXiv 1902.08153). Decay is what pulls clips down (PACT, arXiv 1805.06085).

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


class PacedPrecisions(torch.optim.Optimizer):
    """Mixin that divides the gradient of each precision by its root mean square before the step.

    A plain gradient would move a precision at a pace that depends on the loss, its scale and the layer's size.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for k in group["params"] if group.get("name") == PRECISIONS else ():
                if k.grad is not None:
                    self._pace(k)
        super().step()
        return loss

    def _pace(self, k: Tensor) -> None:
        state, decay = self.state[k], 0.99
        state["squares"] = squares = state.get("squares", 0) * decay + (1 - decay) * k.grad.square()
        state["weight"] = weight = state.get("weight", 0.0) * decay + (1 - decay)
        k.grad.div_((squares / weight).sqrt_().add_(1e-12))


KINDS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}


def optimizer(
    model: nn.Module, kind: str = "sgd", lr: float = 0.1, *, steps: int,
    logit_lr: float | None = None, weight_decay: float = 0.0, **options: Any,
) -> torch.optim.Optimizer:  # fmt: skip
    raise NotImplementedError
