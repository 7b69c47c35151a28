"""Training: search, freeze, finetune, recalibrate, harden.

:func:`fit` does it all for a model that trains by SGD. Whoever wants another loop writes it with
:class:`csq_mini.Budget` and what ``loop.py`` holds, as the README shows.
Source: CSQ (arXiv 2212.02770), the training procedure.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import processes as parallel
from ..activations import quantize_activations
from ..budget import Budget
from .run_folder import RunFolder, fingerprint, get_rng_state, set_rng_state
from ..conversion import convert, harden, set_temperature, unwrap
from ..data import Data
from ..gates import temperature
from ..batchnorm import recalibrate
from ..optim import parameter_groups
from .recipes import Recipe
from ..report import Report, report

if TYPE_CHECKING:
    import pandas

JUDGE_BATCH = 512  # images a batch where nothing is trained


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of rows of ``outputs`` ``[batch, classes]`` whose largest entry is the target's."""
    return (outputs.argmax(1) == targets).float().mean()


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
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    metric: Callable[[Tensor, Tensor], Tensor | float] = accuracy,
    run_dir: str | Path | None = None, device: torch.device | str | None = None,
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

    On a GPU the training steps run under bfloat16 autocast, and every judgement in float32. Started
    by ``torchrun`` (see ``parallel.py``) all processes train one model, each on its share of every
    batch, and the first of them writes the files.

    Args:
        model: float, any ``nn.Module`` with layers to convert.
        data: three splits, see :class:`csq_mini.data.Data`; moved to the device whole.
        recipe: every hyper-parameter.
        loss: of outputs and targets, a mean over the batch.
        metric: of outputs and targets, a mean over the batch, larger is better.
        run_dir: folder for checkpoints, history and result. A run that was killed goes on from its
            last checkpoint and ends bit-identically; one that is done is read back.
        device: None takes the first GPU if there is one, else the CPU.
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
    try:
        run = _Run(copy.deepcopy(unwrap(model)).to(device), data.to(device), recipe, loss, metric, progress)
        if run_dir is None:
            return run.train()
        # Claimed only now that nothing of the above was refused.
        with RunFolder(run_dir, fingerprint(model), data, recipe, tensorboard) as run.folder:
            return run.train()
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"{device} is out of memory: lower batch_size ({recipe.batch_size}) or planes ({recipe.planes}; a weight "
            f"takes {24 * recipe.planes} bytes while it trains), or take a GPU with more. The run folder keeps the "
            f"last checkpoint. ({error})"
        ) from None


class _Run:
    """One run of :func:`fit`: the state that a checkpoint holds, and the steps that change it."""

    def __init__(
        self, model: nn.Module, data: Data, recipe: Recipe, loss: Callable[[Tensor, Tensor], Tensor],
        metric: Callable[[Tensor, Tensor], Tensor | float], progress: bool,
    ):  # fmt: skip
        self.model, self.data, self.recipe, self.progress = model, data, recipe, progress
        self.loss, self.metric = loss, metric
        self.folder: RunFolder | None = None
        self.budget: Budget | None = None
        check_fit(model, data, loss)
        if recipe.activation_bits is not None:
            quantize_activations(model, recipe.activation_bits)
        if recipe.target is not None:
            convert(model, recipe.planes, recipe.skip)
            self.budget = Budget(
                model, recipe.target, recipe.strength, recipe.floor, growth=recipe.growth, weighted=recipe.weighted
            )
        self.net = parallel.wrap(model)  # what the training steps call
        self.epoch_steps = max(len(data.train[0]) // recipe.batch_size, 1)
        if self.budget is None:
            self.phases = [("float", recipe.search_epochs + recipe.finetune_epochs)]
        else:
            self.phases = [("search", recipe.search_epochs), ("finetune", recipe.finetune_epochs)]
        self.phase, self.step = 0, 0  # the next step to take, within its phase
        self.loss_sum = torch.zeros((), device=next(model.parameters()).device)
        self.clock = {"train": 0.0, "images": 0.0}  # seconds and images of this epoch's steps
        self.rows: list[dict[str, Any]] = []

    def train(self) -> Result:
        torch.manual_seed(self.recipe.seed)
        saved = self.folder.load() if self.folder else None
        if saved:
            self.phase, self.step, self.rows = saved["phase"], saved["step"], saved["rows"]
            self.clock = saved["clock"]
            self.loss_sum.copy_(saved["loss_sum"])
            self.model.load_state_dict(saved["model"])
        with self._bar() as bar:
            while self.phase < len(self.phases):
                self._train_phase(bar, saved)
                saved = None
        return self._finish()

    def _train_phase(self, bar: Any, saved: dict[str, Any] | None) -> None:
        name, epochs = self.phases[self.phase]
        steps = epochs * self.epoch_steps
        if name == "finetune" and self.budget and not self.budget.frozen:
            self.budget.freeze()
        optimizer = self._optimizer()
        if saved:
            set_rng_state(saved["rng"])
            if self.step:  # at the start of a phase the optimizer is new, and the saved one of the phase before
                optimizer.load_state_dict(saved["optimizer"])
        bar.set_description(name)
        while self.step < steps:
            self._train_stretch(optimizer, steps, bar)
            if self.step % self.epoch_steps == 0:
                self._end_epoch(name, bar)
            if self.folder and self.step < steps and self.step % self.recipe.checkpoint_steps == 0:
                self._checkpoint(optimizer)
        self.phase, self.step = self.phase + 1, 0
        if self.folder:
            self._checkpoint(optimizer)

    def _optimizer(self) -> torch.optim.Optimizer:
        r = self.recipe
        groups = parameter_groups(self.model, r.lr, r.logit_lr, r.weight_decay)
        for group in groups:
            group["peak"] = group["lr"] = r.lr if r.one_rate else group["lr"]
        return torch.optim.SGD(groups, lr=r.lr, momentum=r.momentum, nesterov=r.momentum > 0, fused=True)

    def _train_stretch(self, optimizer: torch.optim.Optimizer, steps: int, bar: Any) -> None:
        """Train to the end of the epoch or to the next checkpoint; nothing in a step waits for the device."""
        epoch, saving = self.epoch_steps, self.recipe.checkpoint_steps
        stop = min(self.step - self.step % epoch + epoch, self.step - self.step % saving + saving)
        start, first = time.perf_counter(), self.step
        while self.step < stop:
            self._train_step(optimizer, steps)
            bar.update()
        self._check_loss()  # waits for the device, so that the time below is right
        self.clock["train"] += time.perf_counter() - start
        self.clock["images"] += (stop - first) * min(self.recipe.batch_size, len(self.data.train[1]))

    def _train_step(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        r, done = self.recipe, sum(epochs for _, epochs in self.phases[: self.phase]) * self.epoch_steps
        x, y = parallel.share(self.data.training_batch(r.batch_size, r.seed, done + self.step))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate_at(self.step, steps, r.warmup_epochs * self.epoch_steps)
        self.net.train()
        if self.budget:
            set_temperature(self.model, temperature(self.step / steps, r.beta_start, r.beta_end))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            loss = self.loss(self.net(x), y)
        if self.budget:
            loss = loss + self.budget.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.loss_sum += loss.detach()
        self.step += 1

    def _check_loss(self) -> None:
        if not torch.isfinite(parallel.mean_(self.loss_sum)):
            raise ValueError(
                f"the loss became {float(self.loss_sum)} in epoch {len(self.rows) + 1}: check that the inputs are "
                f"finite, or lower lr ({self.recipe.lr}) or logit_lr ({self.recipe.logit_lr})"
            )

    def _end_epoch(self, phase: str, bar: Any) -> None:
        start = time.perf_counter()
        soft = self._judge(self.model, "valid")
        hard = self._judge(self._hard(), "valid") if self.budget else soft
        row = {"phase": phase, "epoch": len(self.rows) + 1, "step": self.step,
               "loss": float(self.loss_sum) / self.epoch_steps, "soft": soft, "hard": hard,
               "seconds": self.clock["train"] + time.perf_counter() - start,
               "images_per_second": self.clock["images"] / self.clock["train"]}  # fmt: skip
        if self.budget:
            layers = self.budget.layers
            row |= {"beta": float(next(iter(layers.values())).beta), "bits": self.budget.bits()}
            row |= {f"bits/{name}": int(layer.open.sum()) for name, layer in layers.items()}
        self.loss_sum.zero_()
        self.clock = {"train": 0.0, "images": 0.0}
        self.rows.append(row)
        if self.folder:
            self.folder.write_history(self.rows)
        bar.set_postfix({k: f"{row[k]:.3f}" for k in ("loss", "soft", "hard", "bits") if k in row})

    def _hard(self) -> nn.Module:
        return hardened(self.model, self.data, self.recipe)

    def _judge(self, model: nn.Module, split: str) -> float:
        return evaluate(model, self.data, split, self.metric)

    def _checkpoint(self, optimizer: torch.optim.Optimizer) -> None:
        assert self.folder is not None
        parallel.mean_(self.loss_sum)
        self.folder.save({
            "phase": self.phase, "step": self.step, "rows": self.rows, "loss_sum": self.loss_sum,
            "clock": self.clock,
            "model": self.model.state_dict(), "optimizer": optimizer.state_dict(), "rng": get_rng_state(),
        })  # fmt: skip

    def _finish(self) -> Result:
        import pandas

        start = time.perf_counter()
        model = self._hard() if self.budget else parallel.alone(self.model)
        test = self._judge(model, "test")
        seconds = sum(row["seconds"] for row in self.rows) + time.perf_counter() - start
        table = report(model) if self.budget else None
        if self.folder:
            self.folder.write_result(model, test, table)
        return Result(model.eval(), test, pandas.DataFrame(self.rows), table, self.recipe, seconds)

    def _bar(self) -> Any:
        from tqdm.auto import tqdm

        total = sum(epochs for _, epochs in self.phases) * self.epoch_steps
        done = sum(epochs for _, epochs in self.phases[: self.phase]) * self.epoch_steps + self.step
        return tqdm(total=total, initial=done, disable=not self.progress or parallel.rank() > 0, unit="step")


def hardened(model: nn.Module, data: Data, recipe: Recipe) -> nn.Module:
    """A hardened copy of a converted model, its batch norm recalibrated as the recipe says."""
    hard, count = parallel.alone(harden(model)), recipe.recalibration_batches
    # Augmented: with statistics of images as they are, a ResNet-20 trained on padded crops lost four points.
    images = islice(data.batches("train", JUDGE_BATCH, recipe.seed), count)
    return recalibrate(hard, images) if count else hard


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Data, split: str = "test", metric: Callable[[Tensor, Tensor], Tensor | float] = accuracy
) -> float:
    """The metric of a model, put into evaluation mode, over a whole split of the data."""
    model.eval()
    scores = [(metric(model(x), y), len(y)) for x, y in data.batches(split, JUDGE_BATCH)]
    return sum(float(score) * count for score, count in scores) / sum(count for _, count in scores)


def check_fit(model: nn.Module, data: Data, loss: Callable[..., Tensor]) -> None:
    """Refuse, before anything is trained or written, a model that does not take the data's inputs and classes."""
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


def rate_at(step: int, steps: int, warmup: float) -> float:
    """Learning rate of a step as a fraction of its peak: linear warm-up times a cosine to 0."""
    return min(1.0, (step + 1) / max(warmup, 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))
