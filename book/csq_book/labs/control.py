"""Controls of the labs: each is a widget in a notebook, and a row of the picture where nothing moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .picture import BLUE, GREY, Canvas


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

        low, high, step = self.span
        if self.kind == "slider":
            return ipywidgets.FloatSlider(value, min=low, max=high, step=step, description=self.label,
                                          readout_format=".2f", **wide())  # fmt: skip
        if self.kind == "log":
            return ipywidgets.FloatLogSlider(value, min=math.log10(low), max=math.log10(high), step=step,
                                             description=self.label, readout_format=".1f", **wide())  # fmt: skip
        if self.kind == "tick":
            return ipywidgets.Checkbox(value, description=self.label, indent=False)
        if self.kind == "choice":
            return ipywidgets.Dropdown(options=self.options, value=value, description=self.label, **wide())
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


def draw_buttons(canvas: Canvas, controls: Sequence[Control]) -> None:
    """All buttons of a lab in one row."""
    for i, control in enumerate(controls):
        canvas.rect(8 + 100 * i, canvas.height, 90, 26, GREY)
        canvas.text(53 + 100 * i, canvas.height + 18, control.label, "middle")
    canvas.height += 34


def wide() -> dict[str, Any]:
    """Arguments that let a widget and its label stand below others of their width."""
    import ipywidgets

    return {"layout": ipywidgets.Layout(width="min(32rem, 98%)"), "style": {"description_width": "13rem"}}
