"""The temperature lab: a gate and its slope under two sliders."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from csq_mini.gates import check_temperature, gate
from .control import Control
from .lab import Lab
from .picture import BLUE, INK, ORANGE, Canvas, Panel, nice_ticks


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
