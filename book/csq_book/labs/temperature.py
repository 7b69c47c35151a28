"""The temperature lab: a gate and its slope under two sliders."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from csq_mini.gates import check_temperature, gate

from .lab import Lab
from .picture import BLUE, ORANGE, Canvas, Panel, nice_ticks


class TemperatureLab(Lab):
    """A gate and its slope, with sliders for the temperature and a logit.

    :func:`csq_mini.gate` and autograd compute both at every move. From code: ``lab.change(beta=20, x=0.1)``.
    """

    title = "temperature lab"
    labels = {"beta": "Temperature \u03b2", "x": "Logit x", "hard": "Hard gate (\u03b2 = \u221e)"}

    def __init__(self) -> None:
        super().__init__()
        self.values = {"beta": 4.0, "x": 0.5, "hard": False}

    def controls(self, w: Any) -> dict[str, Any]:
        return {
            "beta": w.FloatLogSlider(min=0, max=math.log10(200), step=0.02, readout_format=".1f"),
            "x": w.FloatSlider(min=-2, max=2, step=0.05),
            "hard": w.Checkbox(indent=False),
        }

    def apply(self, name: str, value: Any) -> None:
        if name == "beta":
            value = check_temperature(value)
            if math.isinf(value):
                raise ValueError("beta must be finite here: tick hard for the hard gate")
        elif name == "x" and not -2 <= value <= 2:
            raise ValueError(f"x must lie between -2 and 2, got {value!r}")
        self.values[name] = value

    def slopes(self, xs: Tensor) -> tuple[Tensor, Tensor]:
        """The gate at ``xs`` and its slope by autograd; the hard gate has none."""
        if self.values["hard"]:
            return gate(xs, math.inf), torch.zeros_like(xs)
        xs = xs.clone().requires_grad_()
        opening = gate(xs, self.values["beta"])
        return opening.detach(), torch.autograd.grad(opening.sum(), xs)[0]

    def picture(self) -> Canvas:
        """The gate, and below it its slope, with the logit marked on both."""
        canvas, xs = Canvas(), torch.linspace(-2, 2, 401)
        at = torch.tensor([self.values["x"]])
        highest = 1.0 if self.values["hard"] else max(self.values["beta"] / 4, 0.25)
        kinds = (
            ("gate f(x), and at \u03b2 = 1, dashed", [0, 0.25, 0.5, 0.75, 1], BLUE),
            ("slope f\u2032(x), what a gradient is multiplied by", nice_ticks(highest), ORANGE),
        )
        for (title, ticks, color), ys, y in zip(kinds, self.slopes(xs), self.slopes(at)):
            panel = Panel(canvas, 140, title, "logit x", [-2, -1, 0, 1, 2], ticks)
            if color == BLUE:
                panel.curve(xs.tolist(), gate(xs, 1.0).tolist(), "#777777", "6 4")
            panel.curve(xs.tolist(), ys.tolist(), color)
            canvas.add("circle", cx=panel.x(float(at)), cy=panel.y(float(y)), r=6, fill="#333333", stroke="white")
        return canvas

    def words(self) -> str:
        x, beta = self.values["x"], self.values["beta"]
        opening, slope = map(float, self.slopes(torch.tensor([x])))
        if self.values["hard"]:
            return f"Hard: the gate of x = {x:.2f} is {opening:.0f}, and no gradient passes."
        return (
            f"\u03b2 = {beta:.1f}: the gate of x = {x:.2f} is {opening:.3f}, its slope {slope:.3g}; "
            f"the steepest slope, at 0, is \u03b2/4 = {beta / 4:.3g}."
        )
