"""How steady a training is: falls of its accuracy, the gap between soft and hard, and the signal in its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..check import number
from ..modules import copied
from ..planes import Planes
from .baselines.quantizers import quantized

if TYPE_CHECKING:
    import pandas


def worst_fall(history: pandas.DataFrame, column: str = "soft", after: float = 0.25) -> float:
    """How far an accuracy falls below its best so far, at most, from epoch to epoch; 0 if it never does.

    Args:
        history: of :func:`csq_mini.fit`, or a baseline's.
        column: "soft", the network as it trains, or "hard".
        after: share of the epochs that do not count, because everything moves at first.
    """
    late = history[column].iloc[int(number("after", after, 0, 1) * len(history)) :]
    return float((late.cummax() - late).max()) if len(late) else 0.0


def soft_to_hard(history: pandas.DataFrame) -> dict[str, float]:
    """Soft minus hard accuracy at the end of each phase, by its name."""
    ends = history.groupby("phase", sort=False).last()
    return {str(phase): float(end["soft"] - end["hard"]) for phase, end in ends.iterrows()}


def signal_to_noise(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Callable[..., Tensor] = F.cross_entropy
) -> float:  # fmt: skip
    """What mini-batches agree on, over what they do not: the gradient of what quantized weights are made of.

    With gradients g_i of n batches, their mean m, and the spread s^2 = sum_i |g_i - m|^2 / (n - 1), it is the root of
    (|m|^2 - s^2 / n) / s^2, or 0 where noise alone explains the mean. The parameters are bit logits, or the originals
    of another quantizer, so it says how steady a method's own steps are.

    Args:
        model: converted and not hardened, or with quantizers of :mod:`~csq_mini.experiments.baselines`; it stays as it
            is. It runs as in training.
        batches: two or more, inputs and targets.

    Raises ValueError for fewer batches, or a model without quantized layers that train.
    """
    model = copied(model).train()
    parameters = [p for p in _made_of(model) if p.requires_grad]
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no quantized layer that trains")
    total, squares, n = [torch.zeros_like(p, dtype=torch.float64) for p in parameters], 0.0, 0
    for x, y in batches:
        gradients = torch.autograd.grad(loss(model(x), y), parameters, allow_unused=True)
        found = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients)]
        for whole, part in zip(total, found):
            whole += part
        squares, n = squares + sum(float(part.double().square().sum()) for part in found), n + 1
    if n < 2:
        raise ValueError(f"{n} batches have no spread: give two or more")
    mean = sum(float((whole / n).square().sum()) for whole in total)
    noise = (squares - n * mean) / (n - 1)
    signal = max(mean - noise / n, 0.0)
    return (signal / noise) ** 0.5 if noise > 0 else math.inf if signal else 0.0


def _made_of(model: nn.Module) -> list[Any]:
    """The parameters that the weights of quantized layers are made of."""
    planes = [p for module in model.modules() if isinstance(module, Planes) for p in (module.p, module.n)]
    return planes + [p for layer, _ in quantized(model).values() for name, p in layer.named_parameters()
                     if ".weight.original" in name]  # fmt: skip
