"""Judging a model: a metric over a split of the data."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Data

Loss = Callable[[Tensor, Tensor], Tensor]
Metric = Callable[[Tensor, Tensor], "Tensor | float"]

JUDGE_BATCH = 512  # images in a batch where nothing is trained


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of the rows of ``outputs`` ``[batch, classes]`` whose largest entry is at the target."""
    return (outputs.argmax(1) == targets).float().mean()


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, split: str = "test", metric: Metric = accuracy) -> float:
    """The metric over a whole split of the data; puts the model into evaluation mode."""
    model.eval()
    scores = [(metric(model(x), y), len(y)) for x, y in data.batches(split, JUDGE_BATCH)]
    return sum(float(score) * count for score, count in scores) / sum(count for _, count in scores)


def check_fit(model: nn.Module, data: Data, loss: Loss) -> None:
    """ValueError if a model does not take the data's inputs and classes, before anything is trained or written."""
    x, _ = next(data.batches("valid", 2))
    try:
        with torch.no_grad():
            y = model.eval()(x)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"the model does not take inputs of {data.name}, {list(x.shape)} a batch: {error}") from error
    classes = data.classes or int(data.train[1].max()) + 1
    if loss is F.cross_entropy and y.ndim == 2 and classes > y.shape[1]:
        raise ValueError(f"{data.name} has {classes} classes, the model {y.shape[1]} outputs: "
                         f"build it with num_classes={classes}")  # fmt: skip
