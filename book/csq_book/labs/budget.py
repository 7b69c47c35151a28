"""The budget lab: a training to watch, whose budget and temperature change while it goes on."""

from __future__ import annotations

import copy
import math
import threading
import time
from typing import Any, ClassVar

import torch
from torch import nn

from csq_mini import Budget, Recipe, Trainer, evaluate, models, recipes
from csq_mini import data as datasets
from csq_mini.data import Data
from csq_mini.gates import check_temperature
from csq_mini.modules import unwrap
from csq_mini.planes import Planes
from csq_mini.train.trainer import rate_at

from .lab import Lab
from .picture import BLUE, ORANGE, WIDTH, Canvas, Panel, nice_ticks

PACE = 0.25  # seconds between two pictures of a training
TICK = 5  # steps between two entries of its history


class BudgetLab(Lab):
    """Train while you watch, and change the budget and the temperature while it trains.

    Layers lose planes and win them back; at the end of the search their precision is frozen, and a finetune follows
    as in :func:`csq_mini.fit`. A thread trains in the background, one lab at a time; its errors show in the lab. From
    code: ``start()``, ``change(target=3)``, ``change(beta=2)``, ``change(schedule=True)``, ``pause()``, ``reset()``.

    Args:
        model: float; a copy of it is trained, on its device. None is the small CNN for digits.
        data: three splits, see :class:`csq_mini.data.Data`; None is the digits.
        recipe: one with a target; None is that of the digits with a longer search, to leave time for changes.

    Attributes:
        trainer: the :class:`csq_mini.Trainer`; ``model`` is what it trains.
        history: an entry every few steps: step, loss without the penalty, bits, target, open planes of each layer.
        hard: accuracy on the validation split, hardened, at the end of the last epoch.
        exact: the hardened model, once all steps are done.
    """

    title = "budget lab"
    labels = {"target": "Budget \u03c4 (bits a weight)", "beta": "Temperature \u03b2",
              "schedule": "Temperature by the schedule", "start": "Start", "pause": "Pause",
              "reset": "Reset"}  # fmt: skip
    latest: ClassVar[BudgetLab | None] = None  # the lab started last: no other trains

    def __init__(self, model: nn.Module | None = None, data: Data | None = None, recipe: Recipe | None = None):
        super().__init__()
        recipe = recipe or recipes.get("digits", search_epochs=60)
        if recipe.target is None:
            raise ValueError("the lab steers a budget: give the recipe a target")
        if model is None:
            with torch.random.fork_rng(devices=[]):  # leaves the caller's random numbers alone
                torch.manual_seed(recipe.seed)
                model = models.digits_cnn()
        self._begin_with = model, data or datasets.digits(), recipe
        self.values = {"target": recipe.target, "beta": recipe.beta_start, "schedule": True}
        self._lock = threading.Lock()  # held by a step, and by a change, which must not come in its middle
        self._stop, self._thread = threading.Event(), threading.Thread()
        self._stop.set()
        self._begin()

    def _begin(self) -> None:
        model, data, recipe = self._begin_with
        self.model = copy.deepcopy(unwrap(model))
        self.trainer = Trainer(self.model, data.to(next(self.model.parameters()).device), recipe)
        self.trainer.rate = self._rate
        self.history = [self._entry(math.nan)]
        self.hard: float | None = None
        self.exact: nn.Module | None = None

    def _rate(self, step: int, steps: int, warmup: float) -> float:
        """No decay in the search, so that the budget can change at any time."""
        searching = self.trainer.phase == "search"
        return min(1.0, (step + 1) / max(warmup, 1)) if searching else rate_at(step, steps, warmup)

    def controls(self, w: Any) -> dict[str, Any]:
        recipe, floor = self.trainer.recipe, min(self.budget.floor.values())
        low, high = math.log10(recipe.beta_start), math.log10(recipe.beta_end)
        return {
            "target": w.FloatSlider(min=floor or 0.25, max=recipe.planes, step=0.25),
            "beta": w.FloatLogSlider(min=low, max=high, step=0.02, readout_format=".1f"),
            "schedule": w.Checkbox(indent=False),
            "start": w.Button(), "pause": w.Button(), "reset": w.Button(),
        }  # fmt: skip

    def apply(self, name: str, value: Any) -> None:
        with self._lock:
            if name == "target":
                self.trainer.retarget(value)
            elif name == "beta":
                self.trainer.temperature = check_temperature(value)
                self.values["schedule"] = False
            else:
                self.trainer.temperature = None if value else self.values["beta"]
            self.values[name] = value

    def locked(self) -> set[str]:
        off = {"start": self.running or self.exact is not None, "pause": not self.running,
               "target": self.budget.frozen, "beta": self.values["schedule"]}  # fmt: skip
        return {name for name, disabled in off.items() if disabled}

    def show(self, settle: bool = True) -> None:
        if self.trainer.temperature is None:
            self.values["beta"] = min(self.trainer.beta(), self.trainer.recipe.beta_end)
        super().show(settle)

    @property
    def budget(self) -> Budget:
        """The budget at present."""
        assert self.trainer.budget is not None  # the recipe has a target
        return self.trainer.budget

    # What the buttons do, and code may

    @property
    def running(self) -> bool:
        """Whether it trains in the background."""
        return not self._stop.is_set()

    def start(self) -> None:
        """Train in the background, from where it stands; another lab that trains is paused."""
        if self.exact is None and not self.running:
            if BudgetLab.latest:
                BudgetLab.latest.pause()
            BudgetLab.latest, self._stop = self, threading.Event()
            self._thread = threading.Thread(target=self._train, args=(self._stop,), name="csq-lab", daemon=True)
            self._thread.start()
        self.show()

    def pause(self) -> None:
        """Stop after the step under way, without waiting for it."""
        self._stop.set()
        self.show()

    def reset(self) -> None:
        """Stop after the step under way, and begin anew; the controls stay as they are."""
        self._stop.set()
        with self._lock:
            self._begin()
            self.trainer.retarget(self.values["target"])
            self.trainer.temperature = None if self.values["schedule"] else self.values["beta"]
        self.error = None
        self.show()

    def wait(self, timeout: float = 600) -> bool:
        """Block until nothing trains in the background, and say whether that came in time."""
        if self._thread.ident:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def run(self, steps: int) -> None:
        """Train for a number of steps in the foreground; errors are raised."""
        self.pause()
        self.wait()
        for _ in range(steps):
            self._advance()
        self.show()

    def _train(self, stop: threading.Event) -> None:
        """The thread in the background; it ends after the step in which ``stop`` is set."""
        drawn = 0.0
        try:
            while not stop.is_set() and self.exact is None:
                with self._lock:
                    if not stop.is_set():
                        self._advance()
                if time.monotonic() > drawn + PACE:
                    self.show(settle=False)
                    drawn = time.monotonic()
                time.sleep(0.001)  # a change that waits for the lock gets its turn
        except Exception as error:
            self.error = error
        stop.set()
        self.show(settle=False)

    def _advance(self) -> None:
        """One step, and what falls due with it: an entry of the history, a judgement, the end."""
        trainer = self.trainer
        if trainer.done:
            return
        loss = float(trainer.step())
        if not math.isfinite(loss):
            raise ValueError(f"the loss became {loss} in step {trainer.steps_done}: lower the recipe's lr, and Reset")
        if trainer.steps_done % TICK == 0:
            self.history.append(self._entry(loss))
        if trainer.steps_done % trainer.epoch_steps == 0:
            if trainer.done and not self.budget.frozen:  # a recipe without a finetune
                self.budget.freeze()
            hard = trainer.hardened()
            self.hard = evaluate(hard, trainer.data, "valid")
            self.exact = hard.eval() if trainer.done else None

    def _entry(self, loss: float) -> dict[str, Any]:
        b = self.budget
        entry = {"step": self.trainer.steps_done, "loss": loss, "bits": b.bits(), "target": b.target}
        return entry | {f"bits/{name}": int(planes.open.sum()) for name, planes in b.layers.items()}

    # What it shows

    def picture(self) -> Canvas:
        """The precision on its way to the budget; below it the planes of each layer, now and so far."""
        canvas, trainer, history = Canvas(), self.trainer, list(self.history)
        xticks = nice_ticks(trainer.steps_total / trainer.epoch_steps, 5)
        title = "bits a weight B, and the budget \u03c4, dashed"
        panel = Panel(canvas, 130, title, "epoch", xticks, [0, 2, 4, 6, 8])
        freeze = panel.x(trainer.recipe.search_epochs)
        canvas.line([(freeze, panel.top), (freeze, panel.bottom)], "#777777", 1.5, "2 3")
        canvas.text(freeze - 4, panel.top + 14, "freeze", "end")
        epochs = [entry["step"] / trainer.epoch_steps for entry in history]
        panel.curve(epochs, [entry["bits"] for entry in history], BLUE)
        targets = [entry["target"] for entry in history] + [self.budget.target] * 2
        panel.curve([*epochs, epochs[-1], xticks[-1]], targets, ORANGE, "7 4")
        canvas.text(140, canvas.height + 18, "planes now")
        canvas.text(WIDTH - 20, canvas.height + 18, "their number so far", "end")
        canvas.height += 26
        for name, planes in self.budget.layers.items():
            self._draw_layer(canvas, name, planes, history)
        canvas.height += 4
        return canvas

    def _draw_layer(self, canvas: Canvas, name: str, planes: Planes, history: list[dict[str, Any]]) -> None:
        y, n, total = canvas.height + 2, planes.available, self.trainer.steps_total
        left, right = 190 + 17 * n, WIDTH - 20
        kept = (planes.mask.round() if planes.frozen else planes.open).int()
        canvas.layer(y, 140, 13, name, "".join(".1F"[mark] for mark in reversed(kept.tolist())))
        canvas.text(left - 18, y + 16, str(int(planes.open.sum())), "end")
        canvas.rect(left, y, right - left, 22, "#f4f4f4")
        points = [(left + (right - left) * entry["step"] / total, entry[f"bits/{name}"]) for entry in history]
        canvas.line([(x, y + 21 - 20 * k / n) for x, k in points], BLUE)
        canvas.height += 29

    def words(self) -> str:
        trainer, budget, loss = self.trainer, self.budget, self.history[-1]["loss"]
        phase = "finetune" if budget.frozen else "search"
        state = "done" if self.exact is not None else f"{phase}, {'running' if self.running else 'paused'}"
        said = (
            f"Epoch {trainer.steps_done / trainer.epoch_steps:.1f} of {trainer.steps_total // trainer.epoch_steps}, "
            f"{state}: B = {budget.bits():.2f} bits a weight, budget {budget.target:g}, "
            f"temperature {self.values['beta']:.1f}"
        )
        said += f", loss {loss:.2f}" if math.isfinite(loss) else ""
        return said + ("." if self.hard is None else f"; hard accuracy on validation images {self.hard:.1%}.")
