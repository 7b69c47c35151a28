"""What a training loop of your own needs beside the budget: rates, a metric, fresh batch norm."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .activations import PACT
from .conversion import unwrap
from .layers import CSQLayer


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of rows of ``outputs`` ``[batch, classes]`` whose largest entry is the target's."""
    return (outputs.argmax(1) == targets).float().mean()


def parameter_groups(
    model: nn.Module, lr: float, logit_lr: float | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer, each with its rate and weight decay.

    ==================  ====================================  =============================  ================
    group               parameters                            rate                           decay
    ==================  ====================================  =============================  ================
    bit logits          ``p``, ``n`` of converted layers      ``logit_lr``                   0
    mask logits, |W|    ``q`` of the layers of that size      lr * mean size / size, at      0
                                                              most 10 lr
    scale, |W|          ``scale`` of the layers of that size  lr / sqrt(|W| (2^N - 1))       0
    activation clips    ``alpha`` of :class:`PACT`            ``lr``                         ``weight_decay``
    norms and biases    float parameters up to 1 dimension    ``lr``                         0
    float weights       everything else                       ``lr``                         ``weight_decay``
    ==================  ====================================  =============================  ================

    A logit decayed to 0 is a bit that has not decided, so logits never decay. The budget pulls at a
    mask in proportion to its layer's size; with rates in inverse proportion every layer is asked the
    same question, what a weight of its planes is worth, at the same pace (with equal rates the large
    layers are closed before the small ones have moved). One change of a scale changes all weights of
    its layer, hence its rate, the step-size rule of LSQ (arXiv 1902.08153). Decay is what pulls the
    clip of an activation down (PACT, arXiv 1805.06085). Call this after :func:`convert`, and again
    after ``budget.freeze()``: the finetune starts with a new optimizer.

    Args:
        model: converted or float.
        lr: rate of what is not a logit, at least 0.
        logit_lr: rate of the bit logits; None is ten times ``lr``.
        weight_decay: at least 0.

    Returns:
        Groups for an optimizer, each with a ``name``; empty ones are left out, and so are
        parameters that need no gradient.
    """
    logit_lr = 10 * lr if logit_lr is None else logit_lr
    sizes = [m.p.shape[1] for m in unwrap(model).modules() if isinstance(m, CSQLayer)]
    mean = sum(sizes) / max(len(sizes), 1)
    groups: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    for module in unwrap(model).modules():
        for key, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            name, rate = _group_of(module, key, parameter, lr, logit_lr, mean)
            decay = weight_decay if name in ("float weights", "activation clips") else 0.0
            group = groups.setdefault(name, {"params": [], "lr": rate, "weight_decay": decay, "name": name})
            group["params"].append(parameter)
    return sorted(groups.values(), key=lambda group: group["name"])


def _group_of(
    module: nn.Module, key: str, parameter: Tensor, lr: float, logit_lr: float, mean: float
) -> tuple[str, float]:
    if isinstance(module, CSQLayer) and key in ("p", "n", "q", "scale"):
        size = max(module.p.shape[1], 1)
        if key == "q":
            return f"mask logits, |W| = {size}", lr * min(mean / size, 10)
        if key == "scale":
            return f"scale, |W| = {size}", lr / math.sqrt(size * (2**module.planes - 1))
        return "bit logits", logit_lr
    if isinstance(module, PACT) and key == "alpha":
        return "activation clips", lr
    return "norms and biases" if parameter.ndim <= 1 else "float weights", lr


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Re-estimate every batch norm's running statistics for the weights the model has now.

    The statistics gathered while training belong to the soft weights; a hard model judged with them
    can look far worse than it is. The average over all given batches replaces them.

    Args:
        model: any model; one without batch norm is returned as it is. Its training mode, and
            everything but the running statistics, stay as they were.
        batches: finite; inputs, or tuples and lists that begin with the inputs, as training sees
            them, augmentation included. Inputs are moved to the model's device.

    Returns:
        The same model.

    Raises:
        ValueError: if there is batch norm to estimate but no batch. The model is unchanged then.
    """
    norms: list[Any] = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is not None
    ]
    if not norms:
        return model
    source = iter(batches)
    first = next(source, None)
    if first is None:
        raise ValueError("no batch to recalibrate batch norm on: pass at least one batch of inputs")
    modes = {m: m.training for m in model.modules()}
    momenta = [m.momentum for m in norms]
    try:
        model.eval()
        for norm in norms:
            norm.train().reset_running_stats()
            norm.momentum = None  # a plain average over all batches
        while first is not None:
            x = first[0] if isinstance(first, (tuple, list)) else first
            model(x.to(norms[0].running_mean.device))
            first = next(source, None)
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return model
