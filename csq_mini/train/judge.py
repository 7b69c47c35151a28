"""Judging a model: a metric over a split of the data."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ..check import Diverged
from ..data import Data
from ..data.dataset import check_data
from ..modules import outputs_of, unwrap

Loss = Callable[[Tensor, Tensor], Tensor]
Metric = Callable[[Tensor, Tensor], "Tensor | float"]

JUDGE_BATCH = 512  # images in a batch where nothing is trained


def described(value: Any) -> str:
    """What a value is, for an error: type and shape of a tensor, else its class."""
    return f"{str(value.dtype)[6:]} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of the rows of ``outputs`` ``[batch, classes]`` whose largest entry is at the target, ``[batch]``.

    With more dimensions, ``[batch, classes, ...]`` and ``[batch, ...]``, each place counts. ValueError for other
    shapes, targets that are no whole numbers, or outputs that are NaN.
    """
    sound = isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.ndim > 1 and outputs.numel()
    if not sound or targets.is_floating_point() or outputs[:, 0].shape != targets.shape:
        raise ValueError(f"accuracy compares outputs [batch, classes] with whole numbers [batch], got "
                         f"{described(outputs)} and {described(targets)}: reshape, or give another metric")  # fmt: skip
    _refuse_nan(outputs)
    return (outputs.argmax(1) == targets).float().mean()


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, split: str = "test", metric: Metric = accuracy) -> float:
    """The metric over a whole split of the data; puts the model into evaluation mode.

    ValueError for a bad argument, outputs that are NaN, or a metric that is no finite number.
    """
    check_data(data)
    unwrap(model)
    model.eval()
    scores = [(judged(model(x), y, metric), len(y)) for x, y in data.batches(split, JUDGE_BATCH)]
    return sum(score * count for score, count in scores) / sum(count for _, count in scores)


def judged(outputs: Any, targets: Tensor, metric: Metric) -> float:
    """The metric of a batch as a number; ValueError if it is none, or the outputs are NaN."""
    if not callable(metric):
        raise ValueError(f"metric must be a function of outputs and targets, such as csq.accuracy, got {metric!r}")
    _refuse_nan(outputs)
    score: Any = metric(outputs, targets)
    if isinstance(score, Tensor) and score.numel() == 1 and not score.is_complex():
        score = float(score)
    if not isinstance(score, Real) or not math.isfinite(score):
        raise ValueError(f"the metric must return one finite number for a batch, got {score!r}")
    return float(score)


def _refuse_nan(outputs: Any) -> None:
    if any(t.isnan().any() for t in outputs_of(outputs).values()):
        raise Diverged("outputs of the model are NaN: look for NaN in the inputs, or a weight that has diverged")
