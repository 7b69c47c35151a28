"""``fit``: a float model in, an exactly quantized one out."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from ..data import Data
from ..packed.save import check_packable
from ..planes import unwrap
from ..recipes import Recipe
from ..report import Report, report
from . import processes as parallel
from .judge import Loss, Metric, accuracy, evaluate
from .run_folder import RunFolder, fingerprint
from .trainer import Trainer

if TYPE_CHECKING:
    import pandas


@dataclass
class Result:
    """What :func:`fit` returns.

    Attributes:
        model: hardened and recalibrated; the float model itself if the recipe's target is None.
        accuracy: the metric of that model on the test split, as a fraction; of the last epoch.
        history: a row an epoch, see :func:`fit`.
        report: its layers; None for a float model.
        recipe: as it was run.
        seconds: wall time of all training and judging, that before a resume included.
    """

    model: nn.Module
    accuracy: float
    history: pandas.DataFrame
    report: Report | None
    recipe: Recipe
    seconds: float


def fit(
    model: nn.Module, data: Data, recipe: Recipe, *,
    loss: Loss = F.cross_entropy, metric: Metric = accuracy,
    run_dir: str | Path | None = None, device: torch.device | str | None = None, bfloat16: bool | None = None,
    progress: bool = True, tensorboard: bool = False,
) -> Result:  # fmt: skip
    """Train a float model into an exactly quantized one: search, freeze, finetune, recalibrate, harden.

    A copy of the model is trained; the one you give stays as it is. The test split is looked at
    once, at the end, whatever the epochs before were like.

    History columns: ``phase``, ``epoch`` (from 1, over all phases), ``step``, ``loss`` (mean over
    the epoch, penalty included), ``soft`` and ``hard`` (metric on the validation split of the model
    as it trains, and hardened and recalibrated), ``seconds`` (wall time of the epoch, judging
    included), ``images_per_second`` (of its training steps, data included), ``beta``, ``bits``, and
    ``bits/<layer>`` for each.

    Started by ``torchrun`` (see ``processes.py``) all processes train one model, each on its share of every batch, and
    the first of them writes the files.

    Args:
        model: float, any ``nn.Module`` with layers to convert.
        data: three splits, see :class:`csq_mini.data.Data`; moved to the device whole.
        recipe: every hyper-parameter.
        loss: of outputs and targets, a mean over the batch.
        metric: of outputs and targets, a mean over the batch, larger is better.
        run_dir: folder for checkpoints, history and result. A run that was killed goes on from its
            last checkpoint and ends bit-identically; one that is done is read back.
        device: None takes the first GPU if there is one, else the CPU.
        bfloat16: whether training steps run under bfloat16 autocast; they are always judged in float32. None does so
            on a GPU. Part of a run's identity.
        progress: whether to show a progress bar.
        tensorboard: whether to write the history's numbers to ``run_dir`` as TensorBoard events.

    Returns:
        A :class:`Result`.

    Raises:
        ValueError: for a target that cannot be reached, a model that is converted already, or does
            not fit the data's inputs or classes, a folder that holds something else, or a run of
            another model, data, recipe or version, or that another process is using.
        torch.OutOfMemoryError: on a GPU too small, with what to lower; the last checkpoint stays.

    Source: CSQ (arXiv 2212.02770), the training procedure.
    """
    if tensorboard and run_dir is None:
        raise ValueError("tensorboard=True needs a run_dir to write to")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    half = device.type == "cuda" if bfloat16 is None else bfloat16
    if run_dir is not None and recipe.target is not None:
        check_packable(model)
    try:
        own = copy.deepcopy(unwrap(model)).to(device)
        trainer = Trainer(own, data.to(device), recipe, loss=loss, metric=metric, bfloat16=half)
        if run_dir is None:
            return _run(trainer, None, progress)
        # Claimed only now that nothing of the above was refused.
        with RunFolder(run_dir, fingerprint(model), data, recipe, half, tensorboard) as folder:
            return _run(trainer, folder, progress)
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"{device} is out of memory: lower batch_size ({recipe.batch_size}) or planes ({recipe.planes}; a weight "
            f"takes {24 * recipe.planes} bytes while it trains), or take a GPU with more. The run folder keeps the "
            f"last checkpoint. ({error})"
        ) from None


def _run(trainer: Trainer, folder: RunFolder | None, progress: bool) -> Result:
    """Train to the end, from the last checkpoint if there is one."""
    torch.manual_seed(trainer.recipe.seed)
    if folder and (saved := folder.load()):
        trainer.load_state_dict(saved)
    with _bar(trainer, progress) as bar:
        trainer.on_step = lambda: _after_step(trainer, folder, bar)
        trainer.on_epoch = lambda entry: _after_epoch(trainer, folder, bar, entry)
        while not trainer.done:
            trainer.epoch()
    return _finish(trainer, folder)


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
    if folder:
        folder.write_result(model, test, table, trainer.recipe)
    return Result(model.eval(), test, pandas.DataFrame(trainer.history), table, trainer.recipe, seconds)


def _bar(trainer: Trainer, progress: bool) -> Any:
    from tqdm.auto import tqdm

    hidden = not progress or parallel.rank() > 0
    return tqdm(total=trainer.steps_total, initial=trainer.steps_done, disable=hidden, unit="step")
