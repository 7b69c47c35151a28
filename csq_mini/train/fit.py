""":func:`fit` takes a float model and returns an exactly quantized one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from ..data import Data
from ..data.dataset import usable
from ..modules import copied
from ..packed.save import check_packable
from ..recipes import Recipe
from ..report import Report, report
from . import processes as parallel
from .identity import identity
from .judge import Loss, Metric, accuracy, evaluate
from .run_folder import RunFolder
from .trainer import Trainer
from .trial import check_kinds

if TYPE_CHECKING:
    import pandas


@dataclass
class Result:
    """What :func:`fit` returns; where the recipe's target is None, ``model`` stays float and ``report`` is None."""

    model: nn.Module  # hardened and recalibrated
    accuracy: float  # its metric on the test split
    history: pandas.DataFrame  # a row for each epoch, see fit
    report: Report | None
    recipe: Recipe
    seconds: float  # wall time of training and judging, before a resume too


def fit(
    model: nn.Module, data: Data, recipe: Recipe, *,
    loss: Loss = F.cross_entropy, metric: Metric = accuracy,
    run_dir: str | Path | None = None, device: torch.device | str | None = None, bfloat16: bool | None = None,
    progress: bool = True, tensorboard: bool = False,
) -> Result:  # fmt: skip
    """Train a float model into an exactly quantized one: search, freeze, finetune, recalibrate, harden.

    A copy of the model is trained. The test split is used once, at the end. Processes that ``torchrun`` starts train
    one model together, each on its share of every batch; the first of them writes the files.

    History columns: ``phase``, ``epoch`` (from 1, over all phases), ``step``, ``loss`` (mean over the epoch, without
    the penalty), ``soft`` and ``hard`` (metric on the validation split: of the model as it trains, and of its hardened,
    recalibrated copy), ``seconds`` (training and judging), ``images_per_second`` (training alone), ``beta``, ``bits``,
    ``cut`` (bits a weight that the freeze took away), and ``bits/<layer>`` for each layer.

    Args:
        model: any float ``nn.Module`` with layers to convert. Parts in evaluation mode stay in it, and keep the
            statistics of their batch norm; a model that is in it as a whole trains as a whole.
        data: see :class:`csq_mini.data.Data`.
        recipe: every hyper-parameter.
        loss, metric: functions of outputs and targets, each a mean over the batch; a larger metric is better. Both are
            called once before the training, to see that they fit.
        run_dir: folder for checkpoints, history and result. A run that was killed continues from its last checkpoint
            and ends bit-identically, with as many threads on the same machine (elsewhere a warning says that bits may
            differ); one that is done is read back. The folder belongs to this recipe, model, data, loss, metric and
            augmentation: with others it is refused.
        device: None takes the first GPU if there is one, else the CPU.
        bfloat16: whether to train under bfloat16 autocast (judging stays in float32); None does so on a GPU. A resumed
            run must use the same.
        progress: whether to show a progress bar.
        tensorboard: whether to write the history to ``run_dir`` as TensorBoard events too.

    Raises:
        ValueError: if the target cannot be reached, the model is converted already or does not fit the data, an
            argument is of another kind, the training diverges, or ``run_dir`` holds something else.
        OSError: if ``run_dir`` cannot be written to, or another process is using it.
        torch.OutOfMemoryError: with what to lower; the last checkpoint stays.
    """
    check_kinds(model, data, recipe, loss, metric)
    flags = {"bfloat16": bfloat16, "progress": progress, "tensorboard": tensorboard}
    for name, flag in flags.items():
        if not (isinstance(flag, bool) or flag is None):
            raise ValueError(f"{name} must be True or False, got {flag!r}")
    if not isinstance(run_dir, (str, PathLike, NoneType)):
        raise ValueError(f"run_dir must be the path of a folder or None, got {run_dir!r}")
    if tensorboard and run_dir is None:
        raise ValueError("tensorboard=True needs a run_dir to write to")
    device = usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "meta":
        raise ValueError("device 'meta' holds no values to train: take 'cpu' or 'cuda'")
    half = device.type == "cuda" if bfloat16 is None else bfloat16
    if run_dir is not None and recipe.target is not None:
        check_packable(model)
    try:
        own = copied(model).to(device)
        trainer = Trainer(own, data.to(device), recipe, loss=loss, metric=metric, bfloat16=half)
        if run_dir is None:
            return _run(trainer, None, progress)
        # Claimed only now that all of the above is accepted.
        known = identity(model, data, loss, metric)
        with RunFolder(run_dir, known, recipe, device, half, tensorboard) as folder:
            return _run(trainer, folder, progress)
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"{device} is out of memory: lower batch_size ({recipe.batch_size}) or planes ({recipe.planes}; a weight "
            f"takes {24 * recipe.planes} bytes while it trains), or take a GPU with more. The run folder keeps the "
            f"last checkpoint. ({error})"
        ) from None


def _run(trainer: Trainer, folder: RunFolder | None, progress: bool) -> Result:
    train_to_the_end(trainer, folder, progress)
    return _finish(trainer, folder)


def train_to_the_end(trainer: Trainer, folder: RunFolder | None, progress: bool) -> None:
    """Train, from the last checkpoint if there is one; ``trainer.on_step`` and ``on_epoch`` come before a new one."""
    from tqdm.auto import tqdm

    torch.manual_seed(trainer.recipe.seed)
    if folder:
        folder.resume(trainer.load_state_dict)
    hidden = not progress or parallel.rank() > 0
    with tqdm(total=trainer.steps_total, initial=trainer.steps_done, disable=hidden, unit="step") as bar:
        trainer.on_step = _both(trainer.on_step, lambda: _after_step(trainer, folder, bar))
        trainer.on_epoch = _both(trainer.on_epoch, lambda entry: _after_epoch(trainer, folder, bar, entry))
        while not trainer.done:
            trainer.epoch()


def _both(first: Callable[..., Any] | None, second: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls these two, or the second alone."""

    def call(*values: Any) -> None:
        if first:
            first(*values)
        second(*values)

    return call


def _after_step(trainer: Trainer, folder: RunFolder | None, bar: Any) -> None:
    bar.set_description(trainer.phase, refresh=False)
    bar.update()
    due = trainer.progress.step % trainer.recipe.checkpoint_steps == 0
    if folder and due and trainer.progress.step % trainer.epoch_steps:  # at an epoch's end it is judged first
        folder.save(trainer.state_dict())


def _after_epoch(trainer: Trainer, folder: RunFolder | None, bar: Any, entry: dict[str, Any]) -> None:
    step = trainer.progress.step
    if folder:
        folder.write_history(trainer.history)
    if folder and (step == trainer.steps or step % trainer.recipe.checkpoint_steps == 0):
        folder.save(trainer.state_dict())
    bar.set_postfix({k: f"{entry[k]:.3f}" for k in ("loss", "soft", "hard", "bits") if k in entry})


def _finish(trainer: Trainer, folder: RunFolder | None) -> Result:
    import pandas

    start = time.perf_counter()
    model = trainer.hardened() if trainer.budget else parallel.unsync(trainer.model)
    test = evaluate(model, trainer.data, "test", trainer.metric)
    seconds = sum(entry["seconds"] for entry in trainer.history) + time.perf_counter() - start
    table = report(model) if trainer.budget else None
    if table and trainer.budget:
        table.cut = trainer.budget.cut
    if folder:
        folder.write_result(model, test, table, trainer.recipe)
    return Result(model.eval(), test, pandas.DataFrame(trainer.history), table, trainer.recipe, seconds)
