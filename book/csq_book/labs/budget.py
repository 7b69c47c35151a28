"""The budget lab: a training to watch, whose budget and temperature change while it goes on."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import nn

from csq_mini import data as datasets
from csq_mini import models
from csq_mini import recipes
from csq_mini.data import Data
from csq_mini.gates import check_temperature
from csq_mini.train.recipes import Recipe
from .control import Control, wide
from .lab import Lab
from .picture import BLUE, ORANGE, WIDTH, Canvas, Panel, nice_ticks, plane_color, short, stairs
from .search import WORKER, Search

PACE = 0.25  # seconds between two pictures of a training


class BudgetLab(Lab):
    """What :func:`budget_lab` returns.

    Beside what every lab has: ``start()``, ``pause()``, ``reset()``, ``run(steps)``, ``wait()``; ``model``, the one
    that trains, ``rows``, its history, and ``exact``, the hardened model at the end (None before).
    """

    title = "budget lab"

    def __init__(self, model: nn.Module, data: Data, recipe: Recipe):
        super().__init__()
        self.start_from = model, data, recipe
        self.search = Search(*self.start_from)
        low = max(math.ceil(4 * min(self.search.budget.floor.values())) / 4, 0.25)
        self.controls = (
            Control("target", "slider", "Budget \u03c4 (bits a weight)", (low, recipe.planes, 0.25)),
            Control("beta", "log", "Temperature \u03b2", (recipe.beta_start, recipe.beta_end, 0.02)),
            Control("schedule", "tick", "Temperature by the schedule"),
            Control("start", "button", "Start"), Control("pause", "button", "Pause"),
            Control("reset", "button", "Reset"),
        )  # fmt: skip
        self.values = {"target": recipe.target, "beta": recipe.beta_start, "schedule": True}
        self._shown = 0.0

    # What the buttons do, and code may

    @property
    def running(self) -> bool:
        """Whether it trains at present."""
        return WORKER.job is self

    def start(self) -> None:
        """Train on in the background, from where it stands."""
        if self.search.exact is None:
            displaced = WORKER.start(self)
            if displaced:
                displaced.show()
        self.show()

    def pause(self) -> None:
        """Stop after the step under way, without waiting for it."""
        WORKER.stop(self)
        self.show()

    def reset(self) -> None:
        """Pause, and begin anew with the model, data and recipe it was made of; the controls stay as they are."""
        self.pause()
        self.error = None
        fresh = Search(*self.start_from)
        fresh.set_target(self.values["target"])
        fresh.beta = None if self.values["schedule"] else self.values["beta"]
        self.search = fresh  # a step under way ends with the old one
        self._take_temperature()
        self.show()

    def wait(self, timeout: float = 600) -> bool:
        """Block until it does not train any more, and say whether that came in time."""
        end = time.monotonic() + timeout
        while (moving := self in (WORKER.job, WORKER.busy) and not WORKER.idle.is_set()) and time.monotonic() < end:
            time.sleep(0.01)
        return not moving

    def run(self, steps: int) -> None:
        """Train so many steps here and now, not in the background; what goes wrong is raised."""
        self.pause()
        self.wait()
        for _ in range(steps):
            if self.search.exact is None:
                self.search.advance()
        self._take_temperature()
        self.show()

    @property
    def model(self) -> nn.Module:
        """The converted model that trains."""
        return self.search.model

    @property
    def exact(self) -> nn.Module | None:
        """The hardened model, once all steps are done."""
        return self.search.exact

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row every few steps: step, loss (without the penalty), bits, target, and the open planes of each layer."""
        return self.search.rows

    def apply(self, name: str, value: Any) -> None:
        """Change the budget or the temperature, also while it trains."""
        if name == "target":
            self.search.set_target(value)
        elif name == "beta":
            value = self.search.beta = check_temperature(value)
            self.values["schedule"] = False
        else:
            self.search.beta = None if value else self.values["beta"]
        self.values[name] = value
        self._take_temperature()

    # Its part of the background thread

    def tick(self) -> None:
        """One step; at its pace, the picture. Called by the one thread of all labs."""
        search = self.search
        try:
            search.advance()
        except Exception as error:
            WORKER.stop(self)
            self.error = error if search is self.search else None
        if search.exact is not None:
            WORKER.stop(self)
        now = time.monotonic()
        if not self.running or now > self._shown + PACE:
            self._take_temperature()
            self.show()
            self._shown = time.monotonic()

    def _take_temperature(self) -> None:
        if self.search.beta is None:
            self.values["beta"] = min(self.search.temperature(), self.search.recipe.beta_end)

    # What it shows

    def picture(self) -> Canvas:
        """The precision on its way to the budget; below, the planes of each layer, now and so far."""
        canvas, search = Canvas(), self.search
        rows = list(search.rows)
        steps = [row["step"] for row in rows]
        xticks = nice_ticks(max(search.steps / search.epoch_steps, 1), 5)
        title = "bits a weight B, and the budget \u03c4, dashed"
        panel = Panel(canvas, 130, title, "epoch", xticks, [0, 2, 4, 6, 8])
        epochs = [step / search.epoch_steps for step in steps]
        freeze = panel.x(search.recipe.search_epochs)
        canvas.line([(freeze, panel.top), (freeze, panel.bottom)], "#777777", 1.5, "2 3")
        canvas.text(freeze - 4, panel.top + 14, "freeze", "end")
        panel.curve(epochs, [row["bits"] for row in rows], BLUE)
        targets = [row["target"] for row in rows] + [search.budget.target] * 2
        panel.curve(*stairs([*epochs, epochs[-1], xticks[-1]], targets), ORANGE, "7 4")
        self._draw_layers(canvas, rows)
        return canvas

    def _draw_layers(self, canvas: Canvas, rows: list[dict[str, Any]]) -> None:
        planes = self.search.recipe.planes
        left, right = 190 + 17 * planes, WIDTH - 20
        canvas.text(140, canvas.height + 18, "planes now")
        canvas.text(right, canvas.height + 18, "their number so far", "end")
        canvas.height += 26
        for name, layer in self.search.budget.layers.items():
            y = canvas.height
            canvas.text(8, y + 18, short(name or "(model)", 16))
            for i, mark in enumerate(layer.scheme().planes):
                canvas.rect(140 + 17 * i, y + 4, 14, 18, plane_color(mark))
            numbers = [row[f"bits/{name}"] for row in rows]
            canvas.text(left - 18, y + 18, str(int(layer.open.sum())), "end")
            canvas.rect(left, y + 2, right - left, 22, "#f4f4f4")
            last = max(self.search.steps, 1)
            where = [left + (right - left) * min(row["step"] / last, 1) for row in rows]
            canvas.line([(x, y + 23 - 20 * k / planes) for x, k in zip(*stairs(where, numbers))], BLUE)
            canvas.height += 29
        canvas.height += 4

    def words(self) -> str:
        """Where the training stands."""
        search = self.search
        phase = "done" if search.exact is not None else "finetune" if search.budget.frozen else "search"
        state = "" if search.exact is not None else ", running" if self.running else ", paused"
        loss = search.rows[-1]["loss"]
        return (
            f"Epoch {search.step / search.epoch_steps:.1f} of {search.steps // search.epoch_steps}, {phase}{state}: "
            f"B = {search.budget.bits():.2f} bits a weight, budget {search.budget.target:g}, "
            f"temperature {self.values['beta']:.1f}"
            + (f", loss {loss:.2f}" if math.isfinite(loss) else "")
            + (f"; hard accuracy on validation images {search.hard:.1%}" if search.hard is not None else "")
            + "."
        )

    def _extra(self, found: dict[str, Any]) -> list[Any]:
        import ipywidgets

        found["progress"] = ipywidgets.IntProgress(0, max=max(self.search.steps, 1), description="Progress", **wide())
        return [found["progress"]]

    def _follow(self) -> None:
        done, running, widgets = self.search.exact is not None, self.running, self._widgets
        widgets["progress"].value = self.search.step
        off = {"start": done or running, "pause": not running, "target": self.search.budget.frozen,
               "beta": self.values["schedule"]}  # fmt: skip
        for name, disabled in off.items():
            widgets[name].disabled = disabled
        if off["beta"]:
            widgets["beta"].value = self.values["beta"]


def budget_lab(model: nn.Module | None = None, data: Data | None = None, recipe: Recipe | None = None) -> BudgetLab:
    """Train while you watch, and change the budget and the temperature while it trains.

    Layers lose planes and win them back; at the end of the search their precision is frozen and the rest is
    finetuned, as in :func:`csq_mini.fit`. Start, Pause and Reset return at once: one background thread trains, a
    step at a time. What goes wrong in it shows in the lab. From code: ``lab.start()``,
    ``lab.change(target=3)``, ``lab.change(beta=2)``, ``lab.change(schedule=True)``, ``lab.pause()``,
    ``lab.reset()``, ``lab.run(100)``.

    Args:
        model: float; a copy is trained, where its parameters are. None is the small CNN for digits.
        data: three splits, see :class:`csq_mini.data.Data`; None is the digits.
        recipe: None is that of the digits, with a longer search, to have time.

    Raises:
        ValueError: as :func:`csq_mini.fit` does, and for a recipe without a target.
    """
    recipe = recipe or recipes.get("digits", search_epochs=60)
    if model is None:
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
            torch.manual_seed(recipe.seed)
            model = models.digits_cnn()
    return BudgetLab(model, data or datasets.digits(), recipe)
