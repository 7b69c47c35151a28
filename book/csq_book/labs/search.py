"""Training beside the kernel: the thread of all labs, and a training that goes on a step at a time."""

from __future__ import annotations

import copy
import math
import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from csq_mini.activations import quantize_activations
from csq_mini.budget import Budget
from csq_mini.conversion import convert, set_temperature, unwrap
from csq_mini.data import Data
from csq_mini.gates import temperature
from csq_mini.loop import parameter_groups
from csq_mini.train.recipes import Recipe
from csq_mini.train.fit import check_fit, evaluate, hardened, rate_at
from .lab import Lab

TICK = 5  # steps between two points of a training's history


class Worker:
    """One thread for all labs, there only while one of them trains; a lab that starts takes it over."""

    def __init__(self) -> None:
        self.lock, self.idle = threading.Lock(), threading.Event()
        self.idle.set()
        self.job: Lab | None = None  # whose turn it is
        self.busy: Lab | None = None  # in whose step the thread is

    def start(self, lab: Lab) -> Lab | None:
        """Let a lab train; returns the lab that has to pause for it."""
        with self.lock:
            before, self.job = self.job, lab
            if self.idle.is_set():
                self.idle.clear()
                threading.Thread(target=self._loop, name="csq-lab", daemon=True).start()
        return before if before is not lab else None

    def stop(self, lab: Lab) -> None:
        """No step of the lab begins after this; one may be under way."""
        with self.lock:
            self.job = None if self.job is lab else self.job

    def _loop(self) -> None:
        while True:
            with self.lock:
                self.busy = self.job
                if self.busy is None:
                    self.idle.set()
                    return
            self.busy.tick()


WORKER = Worker()


class Search:
    """A model on its way from float to exact, a step at a time: search, freeze, finetune, harden.

    The learning rate is constant in the search, after the warm-up, so that the budget may change at any time; in
    the finetune it falls to 0 as in :func:`csq_mini.fit`.
    """

    def __init__(self, model: nn.Module, data: Data, recipe: Recipe):
        if recipe.target is None:
            raise ValueError("the lab steers a budget: give the recipe a target")
        self.model = copy.deepcopy(unwrap(model))
        self.data, self.recipe = data.to(next(self.model.parameters()).device), recipe
        check_fit(self.model, self.data, F.cross_entropy)
        if recipe.activation_bits is not None:
            quantize_activations(self.model, recipe.activation_bits)
        convert(self.model, recipe.planes, recipe.skip)
        self.budget = self._budget(recipe.target)
        self.beta: float | None = None  # None: by the schedule
        self.epoch_steps = max(len(self.data.train[0]) // recipe.batch_size, 1)
        self.searching = recipe.search_epochs * self.epoch_steps
        self.steps = self.searching + recipe.finetune_epochs * self.epoch_steps
        self.step = 0
        self.rows = [self._row(math.nan)]
        self.hard: float | None = None  # accuracy on the validation split, hardened and recalibrated
        self.exact: nn.Module | None = None  # the hardened model, once all is done
        self._prepare()

    def _budget(self, target: float) -> Budget:
        r = self.recipe
        return Budget(self.model, target, r.strength, r.floor, growth=r.growth, weighted=r.weighted)

    def set_target(self, target: float) -> None:
        """Steer to another target from the next step on: a new budget for the same masks, which go on from here."""
        if self.budget.frozen:
            raise ValueError("the masks are frozen, the budget is spent: press Reset to search again")
        self.budget = self._budget(target)

    def temperature(self) -> float:
        """Temperature of the next step: the one that was set, or the schedule's."""
        if self.beta is not None:
            return self.beta
        first, last = (0, self.searching) if self.step < self.searching else (self.searching, self.steps)
        return temperature((self.step - first) / max(last - first, 1), self.recipe.beta_start, self.recipe.beta_end)

    def _prepare(self) -> None:
        r = self.recipe
        groups = parameter_groups(self.model, r.lr, r.logit_lr, r.weight_decay)
        self.peaks = [group["lr"] for group in groups]
        self.optimizer = torch.optim.SGD(groups, lr=r.lr, momentum=r.momentum, nesterov=r.momentum > 0)

    def advance(self) -> None:
        """One training step, and what falls due with it: the freeze, a judgement, the end."""
        if self.step >= self.searching and not self.budget.frozen:
            self.budget.freeze()
            self._prepare()
        if self.step < self.steps:
            loss = self._train()
            if not math.isfinite(loss):
                raise ValueError(f"the loss became {loss} in step {self.step}: lower the recipe's lr, and Reset")
            if self.step % TICK == 0:
                self.rows.append(self._row(loss))
        if self.step % self.epoch_steps == 0 or self.step == self.steps:
            self._judge()

    def _train(self) -> float:
        r, warmup = self.recipe, self.recipe.warmup_epochs * self.epoch_steps
        rate = min(1.0, (self.step + 1) / max(warmup, 1))
        if self.step >= self.searching:
            rate = rate_at(self.step - self.searching, self.steps - self.searching, warmup)
        for group, peak in zip(self.optimizer.param_groups, self.peaks):
            group["lr"] = rate * peak
        x, y = self.data.training_batch(r.batch_size, r.seed, self.step)
        self.model.train()
        set_temperature(self.model, self.temperature())
        loss = F.cross_entropy(self.model(x), y)
        self.optimizer.zero_grad()
        (loss + self.budget.penalty()).backward()
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def _judge(self) -> None:
        hard = hardened(self.model, self.data, self.recipe)
        self.hard = evaluate(hard, self.data, "valid")
        if self.step == self.steps:
            self.exact = hard.eval()

    def _row(self, loss: float) -> dict[str, Any]:
        row = {"step": self.step, "loss": loss, "bits": self.budget.bits(), "target": self.budget.target}
        return row | {f"bits/{name}": int(layer.open.sum()) for name, layer in self.budget.layers.items()}
