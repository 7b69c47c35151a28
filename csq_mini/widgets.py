"""Labs for a notebook with a kernel: move a slider, and the library computes what the picture shows.

``temperature_lab()`` bends the gate, ``budget_lab()`` trains while you change its budget and its temperature,
``scheme_explorer(model_or_path)`` leafs through what a model keeps. Each is made of ipywidgets, with pictures in
plain SVG, for any notebook that shows widgets. Where nobody can move a slider (a page being built, a notebook run
by a program) a lab shows a picture of itself, and no widget is made. All training happens in one thread beside
the kernel, a step at a time. Needs ipywidgets.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import data as datasets
from . import models, recipes
from .activations import quantize_activations
from .budget import Budget
from .conversion import convert, harden, integers, set_temperature, unwrap
from .data import Data
from .gates import check_temperature, gate, temperature
from .loop import parameter_groups, recalibrate
from .packed_format import verify_packed
from .recipes import Recipe
from .reports import LayerReport, report
from .training import JUDGE_BATCH, _check_fit, evaluate, rate_at

BLUE, ORANGE, GREY, INK = "#0173b2", "#de8f05", "#e8e8e8", "#333333"
WIDTH = 520  # of a picture, in its own units; on a page it is shown at most so wide
PACE = 0.25  # seconds between two pictures of a training
TICK = 5  # steps between two points of its history


# Pictures


class Canvas:
    """An SVG picture that grows downward, on an opaque light ground."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.height = 8.0  # of what is drawn so far

    def rect(self, x: float, y: float, width: float, height: float, fill: str, **more: Any) -> None:
        """A filled rectangle."""
        self._add("rect", x=x, y=y, width=width, height=height, fill=fill, **more)

    def line(self, points: Sequence[tuple[float, float]], color: str, width: float = 2, dash: str = "") -> None:
        """A line through points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._add("polyline", points=path, fill="none", stroke=color, stroke_width=width, stroke_dasharray=dash)

    def dot(self, x: float, y: float, color: str) -> None:
        """A marked point."""
        self._add("circle", cx=x, cy=y, r=6, fill=color, stroke="white", stroke_width=1.5)

    def text(self, x: float, y: float, text: str, anchor: str = "start", color: str = INK) -> None:
        """Text with its foot at ``y``."""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>')

    def svg(self, label: str) -> str:
        """The whole picture; ``label`` says what it shows to who cannot see it."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height:.0f}" width="{WIDTH}" '
            f'role="img" aria-label="{escape(label)}" font-family="sans-serif" font-size="14" '
            f'style="max-width: 100%; height: auto"><rect width="{WIDTH}" height="{self.height:.0f}" fill="white"/>'
            f"{''.join(self.parts)}</svg>"
        )

    def _add(self, tag: str, **attributes: Any) -> None:
        values = {k.replace("_", "-"): v for k, v in attributes.items() if v != ""}
        texts = [f'{k}="{v:.1f}"' if isinstance(v, float) else f'{k}="{v}"' for k, v in values.items()]
        self.parts.append(f"<{tag} {' '.join(texts)}/>")


class Panel:
    """A plot across the canvas, below what is there: a title, a grid with its numbers, and curves."""

    def __init__(
        self, canvas: Canvas, height: float, title: str, xlabel: str,
        xticks: Sequence[float], yticks: Sequence[float], xlim: tuple[float, float] | None = None,
    ):  # fmt: skip
        self.canvas, self.top, self.bottom = canvas, canvas.height + 30, canvas.height + 30 + height
        self.left, self.right = 52.0, WIDTH - 20.0
        self.xlim, self.ylim = xlim or (xticks[0], xticks[-1]), (yticks[0], yticks[-1])
        canvas.text(8, self.top - 12, title)
        for tick in yticks:
            canvas.line([(self.left, self.y(tick)), (self.right, self.y(tick))], "#dddddd", 1)
            canvas.text(self.left - 8, self.y(tick) + 5, f"{tick:g}", "end")
        for tick in xticks:
            canvas.text(self.x(tick), self.bottom + 18, f"{tick:g}", "middle")
        canvas.text((self.left + self.right) / 2, self.bottom + 36, xlabel, "middle")
        canvas.height = self.bottom + 44

    def x(self, value: float) -> float:
        """Where a value stands across."""
        low, high = self.xlim
        return self.left + (self.right - self.left) * (min(max(value, low), high) - low) / (high - low)

    def y(self, value: float) -> float:
        """Where a value stands in height; what lies outside is put on the edge."""
        low, high = self.ylim
        return self.bottom - (self.bottom - self.top) * (min(max(value, low), high) - low) / (high - low)

    def curve(self, xs: Sequence[float], ys: Sequence[float], color: str, dash: str = "") -> None:
        """A line through values."""
        self.canvas.line([(self.x(x), self.y(y)) for x, y in zip(xs, ys)], color, 2.5, dash)


def nice_ticks(high: float, count: int = 4) -> list[float]:
    """Round numbers from 0 to at least ``high``, about ``count`` steps."""
    raw = max(high, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= raw * (1 - 1e-9))
    return [step * i for i in range(math.ceil(high / step - 1e-9) + 1)]


# Controls


@dataclass(frozen=True)
class Control:
    """A labelled control of a lab, before it is a widget: a slider, a box to tick, a choice or a button."""

    name: str
    kind: str  # slider, log, tick, choice, button
    label: str
    span: tuple[float, float, float] = (0, 1, 0.1)  # low, high, step
    options: tuple[str, ...] = ()

    def widget(self, value: Any) -> Any:
        """The ipywidget, with its label, showing ``value``."""
        import ipywidgets

        wide = {"layout": ipywidgets.Layout(width="min(32rem, 98%)"), "style": {"description_width": "13rem"}}
        low, high, step = self.span
        if self.kind == "slider":
            return ipywidgets.FloatSlider(value, min=low, max=high, step=step, description=self.label,
                                          readout_format=".2f", **wide)  # fmt: skip
        if self.kind == "log":
            return ipywidgets.FloatLogSlider(value, min=math.log10(low), max=math.log10(high), step=step,
                                             description=self.label, readout_format=".1f", **wide)  # fmt: skip
        if self.kind == "tick":
            return ipywidgets.Checkbox(value, description=self.label, indent=False)
        if self.kind == "choice":
            return ipywidgets.Dropdown(options=self.options, value=value, description=self.label, **wide)
        return ipywidgets.Button(description=self.label, layout=ipywidgets.Layout(width="7rem"))

    def draw(self, canvas: Canvas, value: Any) -> None:
        """What it looks like, one row of the picture that stands for the lab."""
        y = canvas.height + 14
        canvas.text(8, y + 5, self.label + (":" if self.kind != "tick" else ""))
        if self.kind == "tick":
            canvas.rect(238, y - 7, 14, 14, BLUE if value else "white", stroke="#888888")
        elif self.kind == "choice":
            canvas.rect(238, y - 12, 200, 24, "white", stroke="#888888")
            canvas.text(246, y + 5, f"{value}  \u25be")
        else:
            low, high, _ = self.span
            logs = self.kind == "log"
            share = math.log(value / low) / math.log(high / low) if logs else (value - low) / (high - low)
            canvas.rect(240, y - 2, 200, 4, "#cccccc")
            canvas.dot(240 + 200 * min(max(share, 0), 1), y, BLUE)
            canvas.text(454, y + 5, format(value, ".1f" if logs else ".2f"))
        canvas.height += 30


def _draw_buttons(canvas: Canvas, controls: Sequence[Control]) -> None:
    for i, control in enumerate(controls):
        canvas.rect(8 + 100 * i, canvas.height, 90, 26, GREY)
        canvas.text(53 + 100 * i, canvas.height + 18, control.label, "middle")
    canvas.height += 34


# Labs


class Lab:
    """A picture, a sentence and labelled controls.

    The last line of a cell shows it. From code, ``change(name=value)`` does what a control does, ``values`` are
    those that the controls show, ``error`` is what went wrong last (None if nothing did), and ``svg()`` is a
    picture of the lab.
    """

    title = ""
    controls: tuple[Control, ...] = ()

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.error: Exception | None = None
        self._widgets: dict[str, Any] = {}

    # What a lab says of itself

    def picture(self) -> Canvas:
        """What it shows now."""
        raise NotImplementedError

    def words(self) -> str:
        """The picture in a sentence."""
        raise NotImplementedError

    def apply(self, name: str, value: Any) -> None:
        """Take a new value of a control, or refuse it with a ValueError."""
        raise NotImplementedError

    def press(self, name: str) -> None:
        """Do what a button does."""
        getattr(self, name)()

    # What all have

    def change(self, **values: Any) -> None:
        """Set controls by name, as moving them does; an error is raised here, and shown in the widget too.

        Raises:
            ValueError: if there is no such control, or it cannot take the value.
        """
        known = [control.name for control in self.controls if control.kind != "button"]
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"{self.title} has no control {name!r}, only {', '.join(known)}")
            try:
                self.apply(name, value)
                self.error = None
            except Exception as error:
                self.error = error
                raise
            finally:
                self._sync()
                self.show()

    def svg(self) -> str:
        """A picture of the lab with its controls, for a page on which nothing moves."""
        canvas = self.picture()
        for control in self.controls:
            if control.kind != "button":
                control.draw(canvas, self.values[control.name])
        if buttons := [control for control in self.controls if control.kind == "button"]:
            _draw_buttons(canvas, buttons)
        for line in textwrap.wrap(self._said(), 68):
            canvas.text(8, canvas.height + 14, line)
            canvas.height += 20
        canvas.height += 8
        return canvas.svg(f"{self.title}: {self._said()}")

    @property
    def widgets(self) -> dict[str, Any]:
        """The ipywidgets by name of control, made on first use; ``box`` holds all, ``figure`` the picture."""
        if not self._widgets:
            self._build()
        return self._widgets

    def show(self) -> None:
        """Bring the widgets up to date, if there are any."""
        if self._widgets:
            try:
                text = self._html()
            except Exception as error:  # a picture that fails must not take the lab with it
                self.error = error
                text = f"<p>{escape(self.title)}</p>"
            self._widgets["figure"].value = text
            self._widgets["error"].value = self._alert()
            self._follow()

    def _follow(self) -> None:
        """What else :meth:`show` brings up to date."""

    def _sync(self) -> None:
        """Let the controls show the values that hold; not called from a thread, where a slider may just be moving."""
        for control in self.controls if self._widgets else ():
            if control.kind != "button":
                self._widgets[control.name].value = self.values[control.name]

    def _said(self) -> str:
        return self.words() + (f" {_name(self.error)}" if self.error else "")

    def _html(self) -> str:
        return self.picture().svg(f"{self.title}: {self.words()}") + (
            f'<p style="max-width: {WIDTH}px; margin: 0; line-height: 1.4">{escape(self.words())}</p>'
        )

    def _alert(self) -> str:
        return f'<p role="alert" style="color: #b00020; margin: 0">{escape(_name(self.error))}</p>' * bool(self.error)

    def _build(self) -> None:
        import ipywidgets

        found = {control.name: control.widget(self.values.get(control.name)) for control in self.controls}
        for control in self.controls:
            if control.kind == "button":
                found[control.name].on_click(lambda _, name=control.name: self._pressed(name))
            else:
                found[control.name].observe(self._moved(control.name), "value")
        buttons = [found[control.name] for control in self.controls if control.kind == "button"]
        others = [found[control.name] for control in self.controls if control.kind != "button"]
        found["figure"], found["error"] = ipywidgets.HTML(), ipywidgets.HTML()
        rows = [*others, ipywidgets.HBox(buttons)] if buttons else others
        found["box"] = ipywidgets.VBox([*rows, *self._extra(found), found["error"], found["figure"]])
        self._widgets = found
        self.show()

    def _extra(self, found: dict[str, Any]) -> list[Any]:
        return []

    def _moved(self, name: str) -> Callable[[Any], None]:
        def moved(event: Any) -> None:
            # Else the lab itself has moved it: a reader cannot move what is disabled.
            if event["new"] != self.values[name] and not self._widgets[name].disabled:
                self._guard(lambda: self.apply(name, event["new"]))

        return moved

    def _pressed(self, name: str) -> None:
        self._guard(lambda: self.press(name))

    def _guard(self, act: Callable[[], None]) -> None:
        """Whatever goes wrong in a control shows in the widget: a notebook would lose it."""
        try:
            self.error = None
            act()
        except Exception as error:
            self.error = error
        self._sync()
        self.show()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        plain = {"text/plain": f"<{self.title}>"}
        if not someone_there():
            return plain | {"image/svg+xml": self.svg()}
        bundle = self.widgets["box"]._repr_mimebundle_() | plain
        # Beside the widget, for whoever opens the saved notebook without a kernel; Colab might take it for the better.
        return bundle if "google.colab" in sys.modules else bundle | {"image/svg+xml": self.svg()}


def _name(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}" if error else ""


def someone_there() -> bool:
    """Whether a person can move what a cell shows: a notebook's front end answers input(), a program does not."""
    if "google.colab" in sys.modules:
        return True
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    there = getattr(getattr(shell, "kernel", None), "_allow_stdin", False)
    return bool(there) and importlib.util.find_spec("ipywidgets") is not None


class TemperatureLab(Lab):
    """What :func:`temperature_lab` returns."""

    title = "temperature lab"
    controls = (
        Control("beta", "log", "Temperature \u03b2", (1, 200, 0.02)),
        Control("x", "slider", "Logit x", (-2, 2, 0.05)),
        Control("hard", "tick", "Hard gate (\u03b2 = \u221e)"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.values = {"beta": 4.0, "x": 0.5, "hard": False}

    def apply(self, name: str, value: Any) -> None:
        """Take a slider's value."""
        if name == "beta":
            value = check_temperature(value)
            if math.isinf(value):
                raise ValueError("beta must be finite here: tick hard for the hard gate")
        elif name == "x" and not -2 <= value <= 2:
            raise ValueError(f"x must lie between -2 and 2, got {value!r}")
        self.values[name] = value

    def slopes(self, xs: Tensor) -> tuple[Tensor, Tensor]:
        """The gate at ``xs`` and its slope, as autograd finds it; the hard gate has none."""
        xs = xs.clone().requires_grad_()
        if self.values["hard"]:
            return gate(xs.detach(), math.inf), torch.zeros_like(xs).detach()
        opening = gate(xs * 1, self.values["beta"])
        return opening.detach(), torch.autograd.grad(opening.sum(), xs)[0]

    def picture(self) -> Canvas:
        """The gate above, its slope below, with the logit marked on both."""
        canvas, xs = Canvas(), torch.linspace(-2, 2, 401)
        at = torch.tensor([self.values["x"]])
        point = [float(part) for part in self.slopes(at)]
        highest = 1.0 if self.values["hard"] else max(self.values["beta"] / 4, 0.25)
        scales = ([0, 0.25, 0.5, 0.75, 1], nice_ticks(highest))
        titles = ("gate f(x), and at \u03b2 = 1, dashed", "slope f\u2032(x), what a gradient is multiplied by")
        for i, (values, ticks, title) in enumerate(zip(self.slopes(xs), scales, titles)):
            panel = Panel(canvas, 140, title, "logit x", [-2, -1, 0, 1, 2], ticks)
            if i == 0:
                panel.curve(xs.tolist(), gate(xs, 1.0).tolist(), "#777777", "6 4")
            panel.curve(xs.tolist(), values.tolist(), (BLUE, ORANGE)[i])
            canvas.dot(panel.x(float(at)), panel.y(point[i]), INK)
        return canvas

    def words(self) -> str:
        """Gate and slope at the logit, in numbers."""
        opening, slope = (float(part) for part in self.slopes(torch.tensor([self.values["x"]])))
        x, beta = self.values["x"], self.values["beta"]
        if self.values["hard"]:
            return f"Hard: the gate of x = {x:.2f} is {opening:.0f}, and no gradient passes."
        return (
            f"\u03b2 = {beta:.1f}: the gate of x = {x:.2f} is {opening:.3f}, its slope {slope:.3g}; "
            f"the steepest, at 0, is \u03b2/4 = {beta / 4:.3g}."
        )


def temperature_lab() -> TemperatureLab:
    """A gate and its gradient under your hands: sliders for the temperature and for a logit.

    Curve and slope come from :func:`csq_mini.gate` and autograd each time. From code:
    ``lab.change(beta=20, x=0.1)``.
    """
    return TemperatureLab()


class SchemeExplorer(Lab):
    """What :func:`scheme_explorer` returns."""

    title = "scheme explorer"
    orders = ("as listed", "largest first", "most planes first")

    def __init__(self, model_or_path: nn.Module | str | Path):
        super().__init__()
        self.source = model_or_path
        self.read()
        names = tuple(row.name for row in self.report.rows)
        self.controls = (
            Control("layer", "choice", "Layer", options=names),
            Control("order", "choice", "Order", options=self.orders),
            Control("read", "button", "Read again"),
        )
        self.values = {"layer": names[0], "order": self.orders[0]}

    def read(self) -> None:
        """Look at the model or file anew: it may have been trained on, or written again."""
        if isinstance(self.source, nn.Module):
            self.report = report(self.source)
            self._packed = None
        else:
            self._packed = verify_packed(self.source)
            self.report = self._packed.report()
        self._codes: dict[str, Tensor] = {}

    def codes(self) -> Tensor:
        """The integers of the chosen layer, in its weight's shape."""
        name = self.values["layer"]
        if name not in self._codes:
            if isinstance(self.source, nn.Module):
                self._codes |= {key: found.codes.cpu() for key, found in integers(self.source).items()}
            elif self._packed is not None:
                self._codes[name] = self._packed.layers[name].codes()
        return self._codes[name]

    def apply(self, name: str, value: Any) -> None:
        """Choose a layer or an order."""
        options = next(control.options for control in self.controls if control.name == name)
        if value not in options:
            raise ValueError(f"{name} must be one of {', '.join(options)}, got {value!r}")
        self.values[name] = value

    @property
    def row(self) -> LayerReport:
        """The chosen layer's line of the report."""
        return next(row for row in self.report.rows if row.name == self.values["layer"])

    def picture(self) -> Canvas:
        """The planes of all layers, and how often each integer occurs in the chosen one."""
        canvas = Canvas()
        self._draw_layers(canvas)
        values, counts = self.codes().flatten().unique(return_counts=True)
        reach = max(int(values.abs().max()), 1) if len(values) else 1
        ticks = nice_ticks(float(counts.max()) if len(counts) else 1, 3)
        title = f"layer {self._called(self.row)}: how many weights have each integer"
        xticks = [-reach, *([-reach // 2, 0, reach // 2] if reach % 2 == 0 else [0]), reach]
        edge = 1.04 * reach + 0.5
        panel = Panel(canvas, 120, title, "integer, in steps", xticks, ticks, (-edge, edge))
        width = max(min(18.0, 0.4 * (panel.right - panel.left) / edge), 1.0)
        for value, count in zip(values.tolist(), counts.tolist()):
            canvas.rect(panel.x(value) - width / 2, panel.y(count), width, panel.bottom - panel.y(count), ORANGE)
        return canvas

    def _draw_layers(self, canvas: Canvas) -> None:
        keys: dict[str, Callable[[LayerReport], float]] = {
            self.orders[1]: lambda row: -row.weights, self.orders[2]: lambda row: -row.paper_bits,
        }  # fmt: skip
        rows = sorted(self.report.rows, key=keys.get(self.values["order"], lambda row: 0))
        canvas.text(180, canvas.height + 14, "planes, most significant left")
        canvas.text(WIDTH - 20, canvas.height + 14, "weights", "end")
        canvas.height += 24
        for row in rows:
            y, chosen = canvas.height, row.name == self.values["layer"]
            if chosen:
                canvas.rect(4, y, WIDTH - 8, 22, "#dcebf5")
            canvas.text(8, y + 16, ("\u25b8 " if chosen else "") + _short(self._called(row)))
            for i, mark in enumerate(row.planes):
                _draw_plane(canvas, 180 + 24 * i, y + 2, mark)
            canvas.text(190 + 24 * len(row.planes), y + 16, f"{row.paper_bits}")
            canvas.text(WIDTH - 20, y + 16, f"{row.weights} ({row.share:.0%})", "end")
            canvas.height += 24

    @staticmethod
    def _called(row: LayerReport) -> str:
        return row.name or "(model)"

    def words(self) -> str:
        """The chosen layer in numbers, and the whole."""
        row, total = self.row, self.report.total
        different = len(self.codes().unique())
        filled = f", {row.filled} of them filled at the freeze" if row.filled else ""
        return (
            f"Layer {self._called(row)}: shape {'x'.join(map(str, row.shape))}, {_count(row.paper_bits, 'plane')} "
            f"kept{filled}, {_count(different, 'different integer')}, stored with {_count(row.stored_bits, 'bit')} "
            f"each in {_count(row.bytes, 'byte')}. The whole: {total.paper_bits:.2f} bits a weight."
        )


def scheme_explorer(model_or_path: nn.Module | str | Path) -> SchemeExplorer:
    """Every layer's planes, and the integers of the one you choose.

    Args:
        model_or_path: a converted model (its present hard scheme; "Read again" follows its training), a hardened
            one, or the path of a packed file, for which no model is needed.

    Raises:
        ValueError: for a model with no quantized layer. PackedFileError, OSError: for a file that cannot be read.
    """
    return SchemeExplorer(model_or_path)


def _draw_plane(canvas: Canvas, x: float, y: float, mark: str) -> None:
    canvas.rect(x, y, 20, 18, {"1": BLUE, "F": ORANGE}.get(mark, GREY))
    if mark == "F":
        canvas.text(x + 10, y + 14, "F", "middle", "black")


def _short(name: str, most: int = 20) -> str:
    return name if len(name) <= most else "\u2026" + name[1 - most :]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


# Training beside the kernel


class Worker:
    """One thread for all labs, there only while one of them trains; a lab that starts takes it over."""

    def __init__(self) -> None:
        self.lock, self.idle = threading.Lock(), threading.Event()
        self.idle.set()
        self.job: BudgetLab | None = None  # whose turn it is
        self.busy: BudgetLab | None = None  # in whose step the thread is

    def start(self, lab: BudgetLab) -> BudgetLab | None:
        """Let a lab train; returns the lab that has to pause for it."""
        with self.lock:
            before, self.job = self.job, lab
            if self.idle.is_set():
                self.idle.clear()
                threading.Thread(target=self._loop, name="csq-lab", daemon=True).start()
        return before if before is not lab else None

    def stop(self, lab: BudgetLab) -> None:
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
        _check_fit(self.model, self.data, F.cross_entropy)
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
        hard, count = harden(self.model), self.recipe.recalibration_batches
        if count:
            recalibrate(hard, islice(self.data.batches("train", JUDGE_BATCH, self.recipe.seed), count))
        self.hard = evaluate(hard, self.data, "valid")
        if self.step == self.steps:
            self.exact = hard.eval()

    def _row(self, loss: float) -> dict[str, Any]:
        row = {"step": self.step, "loss": loss, "bits": self.budget.bits(), "target": self.budget.target}
        return row | {f"bits/{name}": int(layer.open.sum()) for name, layer in self.budget.layers.items()}


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
        panel.curve(*_stairs([*epochs, epochs[-1], xticks[-1]], targets), ORANGE, "7 4")
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
            canvas.text(8, y + 18, _short(name or "(model)", 16))
            for i, mark in enumerate(_marks(layer)):
                canvas.rect(140 + 17 * i, y + 4, 14, 18, {"1": BLUE, "F": ORANGE}.get(mark, GREY))
            numbers = [row[f"bits/{name}"] for row in rows]
            canvas.text(left - 18, y + 18, str(int(layer.open.sum())), "end")
            canvas.rect(left, y + 2, right - left, 22, "#f4f4f4")
            last = max(self.search.steps, 1)
            where = [left + (right - left) * min(row["step"] / last, 1) for row in rows]
            canvas.line([(x, y + 23 - 20 * k / planes) for x, k in zip(*_stairs(where, numbers))], BLUE)
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

        look = {"layout": ipywidgets.Layout(width="min(32rem, 98%)"), "style": {"description_width": "13rem"}}
        found["progress"] = ipywidgets.IntProgress(0, max=max(self.search.steps, 1), description="Progress", **look)
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


def _stairs(xs: list[float], ys: list[float]) -> tuple[list[float], list[float]]:
    """Corners of a line that changes at its points only, as a slider and a number of planes do."""
    points = [(xs[0], ys[0])]
    for (_, before), (x, y) in pairwise(zip(xs, ys)):
        if y != before:
            points += [(x, before), (x, y)]
    points.append((xs[-1], ys[-1]))
    return [x for x, _ in points], [y for _, y in points]


def _marks(layer: Any) -> str:
    """1 learned, F filled, . dropped, the most significant plane first."""
    scheme = layer.scheme()
    return "".join(
        "F" if b in scheme.filled else "1" if b in scheme.kept else "." for b in reversed(range(layer.planes))
    )


def budget_lab(
    model: nn.Module | None = None, data: Data | None = None, recipe: Recipe | None = None
) -> BudgetLab:
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
