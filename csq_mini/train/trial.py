"""What is tried before a training, so that nothing is trained or written with arguments that do not fit."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batchnorm import set_training
from ..check import floors
from ..conversion import convertible
from ..data import Data
from ..data.dataset import SPLITS, check_data
from ..modules import copied, unwrap
from ..recipes import Recipe
from ..targets import check_target
from .judge import JUDGE_BATCH, Loss, Metric, accuracy, described, judged
from .run_folder import get_rng_state, set_rng_state

LEFT_OUT = -100  # a target that F.cross_entropy leaves out


def check_kinds(model: nn.Module, data: Data, recipe: Recipe, loss: Loss, metric: Metric) -> None:
    """ValueError if an argument of fit or Trainer is of another kind."""
    check_data(data)
    if not isinstance(recipe, Recipe):
        way = f"csq.recipes.get({recipe!r})" if isinstance(recipe, str) else "csq.Recipe(...)"
        raise ValueError(f"recipe must be a csq.Recipe, got {described(recipe)}: {way} makes one")
    for name, function in (("loss", loss), ("metric", metric)):
        if not callable(function):
            raise ValueError(f"{name} must be a function of outputs and targets, got {function!r}")
    if not any(p.requires_grad for p in unwrap(model).parameters()):
        raise ValueError(f"{type(model).__name__} has no parameter to train: model.requires_grad_(True) thaws all")


def check_target_of(model: nn.Module, recipe: Recipe) -> None:
    """ValueError if the recipe's target cannot be reached, or the model not be converted; it stays as it is."""
    if recipe.target is not None:
        layers: dict[str, Any] = convertible(model, recipe.skip)[0]
        sizes = {name: layer.weight.numel() for name, layer in layers.items()}
        planes = dict.fromkeys(sizes, recipe.planes)
        check_target(recipe.target, sizes, planes, floors(planes, recipe.floor))


def try_out(
    model: nn.Module, still: list[str], data: Data, recipe: Recipe, loss: Loss, metric: Metric, bfloat16: bool
) -> None:
    """Judge a batch and compute the loss of one, with a copy; ValueError says what does not fit.

    Random numbers stay as they are.
    """
    _check_finite(data, loss)
    state, own = get_rng_state(), copied(model).eval()
    try:
        x, y = next(data.batches("valid", JUDGE_BATCH))
        with torch.no_grad(), _explained(f"the model does not take inputs of {data.name}, {described(x)} a batch"):
            outputs = own(x)
        with _explained(f"the metric fails on outputs {described(outputs)} and targets {described(y)}"):
            judged(outputs, y, metric)
        if isinstance(outputs, Tensor) and outputs.ndim > 1 and (loss is F.cross_entropy or metric is accuracy):
            _check_classes(data, outputs.shape[1] if loss is F.cross_entropy else math.inf, metric is accuracy)
        set_training(own, still)
        _try_loss(own, *data.training_batch(recipe.batch_size, recipe.seed, 0), loss, bfloat16)
    finally:
        set_rng_state(state)


def _try_loss(model: nn.Module, x: Tensor, y: Tensor, loss: Loss, bfloat16: bool) -> None:
    alone = ", use a larger batch_size" if len(x) == 1 else ""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        with _explained(f"the model does not train on {described(x)} a batch{alone}"):
            outputs = model(x)
        with _explained(f"the loss fails on outputs {described(outputs)} and targets {described(y)}"):
            value: Any = loss(outputs, y)
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        raise ValueError(f"the loss must be a tensor [] with a gradient to the model, got {described(value)}: return "
                         "the mean of the batch, without float(), .item() or .detach()")  # fmt: skip
    if not value.isfinite():
        raise ValueError(f"the loss of the first batch is {value.item()}, before any training: look for NaN and for "
                         "large values in the targets, the weights, and the loss itself")  # fmt: skip


def _check_finite(data: Data, loss: Loss) -> None:
    """ValueError for NaN or infinity in inputs, and in targets unless a loss of the user's own may know them."""
    own = not str(getattr(loss, "__module__", "")).startswith("torch.nn")
    for split in SPLITS:
        for what, values in zip(("inputs", "targets"), getattr(data, split)):
            if what == "targets" and own or not values.is_floating_point():
                continue
            if not all(part.isfinite().all() for part in values.split(4096)):
                raise ValueError(f"{data.name}: {split} has {what} that are NaN or infinite: repair or remove them")


def _check_classes(data: Data, outputs: float, counted: bool) -> None:
    """ValueError for targets that are no class, as F.cross_entropy and accuracy read them."""
    for split in SPLITS:
        y = getattr(data, split)[1]
        y = y if counted else y[y != LEFT_OUT]
        low, high = (0, 0) if y.is_floating_point() or not y.numel() else (int(y.min()), int(y.max()))
        if low < 0:
            raise ValueError(f"{data.name}: {split} has the target {low}, which is no class: count from 0 (for "
                             f"{LEFT_OUT}, left out by cross_entropy, give a metric that does so too)")  # fmt: skip
        if (classes := data.classes or high + 1) > outputs:
            raise ValueError(f"{data.name} has {classes} classes, the model {outputs} outputs: "
                             f"build it with num_classes={classes}")  # fmt: skip


@contextmanager
def _explained(text: str) -> Iterator[None]:
    """Errors of a user's function as a ValueError that says what it was given."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size")  # torch's, where shapes are stretched in silence
            yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, UserWarning) as error:
        raise ValueError(f"{text}: {error}") from error
