"""Training: search, freeze, finetune, recalibrate, harden.

:func:`fit` does it all for a model that trains by SGD. Whoever wants another loop writes it with
:class:`csq_mini.Budget` and what ``loop.py`` holds, as the README shows.
Source: CSQ (arXiv 2212.02770), the training procedure.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .budget import Budget
from .checkpoint import RunFolder, fingerprint, get_rng_state, set_rng_state
from .conversion import convert, harden, set_temperature, unwrap
from .data import Data, Split, batches, training_batch
from .gates import temperature
from .loop import accuracy, parameter_groups, recalibrate
from .recipes import Recipe
from .reports import Report, report

if TYPE_CHECKING:
    import pandas

JUDGE_BATCH = 512  # images a batch where nothing is trained


@dataclass
class Result:
    """What :func:`fit` returns.

    Attributes:
        model: hardened and recalibrated; the float model itself if the recipe's target is None.
        accuracy: the metric of that model on the test split, as a fraction; of the last epoch.
        history: a row an epoch, see :func:`fit`.
        report: its layers; None for a float model.
        recipe: as it was run.
    """

    model: nn.Module
    accuracy: float
    history: pandas.DataFrame
    report: Report | None
    recipe: Recipe


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
    as it trains, and hardened and recalibrated), ``beta``, ``bits``, and ``bits/<layer>`` for each.

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
        ValueError: for a target that cannot be reached, a model that is converted already, a folder
            that holds something else, or a run of another model, data, recipe or version.

    Source: CSQ (arXiv 2212.02770), the training procedure.
    """
    if tensorboard and run_dir is None:
        raise ValueError("tensorboard=True needs a run_dir to write to")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    run = _Run(copy.deepcopy(unwrap(model)).to(device), data.to(device), recipe, loss, metric, progress)
    if run_dir is not None:  # claimed only now that nothing of the above was refused
        run.folder = RunFolder(run_dir, fingerprint(model), data, recipe, tensorboard)
    return run.train()


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
        if recipe.target is not None:
            convert(model, recipe.planes, recipe.skip)
            self.budget = Budget(model, recipe.target, recipe.strength, recipe.floor)
        self.epoch_steps = max(len(data.train[0]) // recipe.batch_size, 1)
        if self.budget is None:
            self.phases = [("float", recipe.search_epochs + recipe.finetune_epochs)]
        else:
            self.phases = [("search", recipe.search_epochs), ("finetune", recipe.finetune_epochs)]
        self.phase, self.step = 0, 0  # the next step to take, within its phase
        self.loss_sum = torch.zeros((), device=data.train[0].device)
        self.rows: list[dict[str, Any]] = []

    def train(self) -> Result:
        torch.manual_seed(self.recipe.seed)
        saved = self.folder.load() if self.folder else None
        if saved:
            self.phase, self.step, self.rows = saved["phase"], saved["step"], saved["rows"]
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
            self._train_step(optimizer, steps)
            bar.update()
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
            group["peak"] = group["lr"]
        return torch.optim.SGD(groups, lr=r.lr, momentum=r.momentum, nesterov=r.momentum > 0, fused=True)

    def _train_step(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        r, done = self.recipe, sum(epochs for _, epochs in self.phases[: self.phase]) * self.epoch_steps
        x, y = training_batch(self.data, r.batch_size, r.seed, done + self.step)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate_at(self.step, steps, r.warmup_epochs * self.epoch_steps)
        self.model.train()
        if self.budget:
            set_temperature(self.model, temperature(self.step / steps, r.beta_start, r.beta_end))
        loss = self.loss(self.model(x), y)
        if self.budget:
            loss = loss + self.budget.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.loss_sum += loss.detach()
        self.step += 1

    def _end_epoch(self, phase: str, bar: Any) -> None:
        if not torch.isfinite(self.loss_sum):
            raise ValueError(
                f"the loss became {float(self.loss_sum)} in epoch {len(self.rows) + 1}: check that the inputs are "
                f"finite, or lower lr ({self.recipe.lr}) or logit_lr ({self.recipe.logit_lr})"
            )
        soft = self._judge(self.model, self.data.valid)
        hard = self._judge(self._hard(), self.data.valid) if self.budget else soft
        row = {"phase": phase, "epoch": len(self.rows) + 1, "step": self.step,
               "loss": float(self.loss_sum) / self.epoch_steps, "soft": soft, "hard": hard}  # fmt: skip
        if self.budget:
            layers = self.budget.layers
            row |= {"beta": float(next(iter(layers.values())).beta), "bits": self.budget.bits()}
            row |= {f"bits/{name}": int(layer.open.sum()) for name, layer in layers.items()}
        self.loss_sum.zero_()
        self.rows.append(row)
        if self.folder:
            self.folder.write_history(self.rows)
        bar.set_postfix({k: f"{row[k]:.3f}" for k in ("loss", "soft", "hard", "bits") if k in row})

    def _hard(self) -> nn.Module:
        train = self.data.train
        return recalibrate(harden(self.model), islice(batches(train, JUDGE_BATCH), self.recipe.recalibration_batches))

    @torch.no_grad()
    def _judge(self, model: nn.Module, split: Split) -> float:
        model.eval()
        total = sum(float(self.metric(model(x), y)) * len(y) for x, y in batches(split, JUDGE_BATCH))
        return total / len(split[1])

    def _checkpoint(self, optimizer: torch.optim.Optimizer) -> None:
        assert self.folder is not None
        self.folder.save({
            "phase": self.phase, "step": self.step, "rows": self.rows, "loss_sum": self.loss_sum,
            "model": self.model.state_dict(), "optimizer": optimizer.state_dict(), "rng": get_rng_state(),
        })  # fmt: skip

    def _finish(self) -> Result:
        import pandas

        model = self._hard() if self.budget else self.model
        test = self._judge(model, self.data.test)
        table = report(model) if self.budget else None
        if self.folder:
            self.folder.write_result(model, test, table)
        return Result(model.eval(), test, pandas.DataFrame(self.rows), table, self.recipe)

    def _bar(self) -> Any:
        from tqdm.auto import tqdm

        total = sum(epochs for _, epochs in self.phases) * self.epoch_steps
        done = sum(epochs for _, epochs in self.phases[: self.phase]) * self.epoch_steps + self.step
        return tqdm(total=total, initial=done, disable=not self.progress, unit="step")


def rate_at(step: int, steps: int, warmup: float) -> float:
    """Learning rate of a step as a fraction of its peak: linear warm-up times a cosine to 0."""
    return min(1.0, (step + 1) / max(warmup, 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))
