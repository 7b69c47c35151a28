"""Pictures of the labs as SVG text. A slider has to move: this takes 1 to 4 ms, matplotlib 80 to 180.

Nor do these change global settings, as a style of matplotlib does; the thread that trains draws too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from csq_mini.plots import BLUE, ORANGE

WIDTH = 520  # of a picture; a page shows it at this width at most


class Canvas:
    """An SVG picture on a white ground that grows downwards."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.height = 8.0  # of what is drawn so far

    def add(self, tag: str, text: str = "", **attributes: Any) -> None:
        """An SVG element; ``stroke_width=2`` becomes ``stroke-width="2"``."""
        values = {k.replace("_", "-"): f"{v:.1f}" if isinstance(v, float) else v for k, v in attributes.items()}
        inside = " ".join(f'{key}="{value}"' for key, value in values.items())
        self.parts.append(f"<{tag} {inside}>{escape(text)}</{tag}>" if text else f"<{tag} {inside}/>")

    def rect(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        self.add("rect", x=x, y=y, width=width, height=height, fill=fill)

    def line(self, points: Sequence[tuple[float, float]], color: str, width: float = 2, dash: str = "0") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.add("polyline", points=path, fill="none", stroke=color, stroke_width=width, stroke_dasharray=dash)

    def text(self, x: float, y: float, text: str, anchor: str = "start") -> None:
        self.add("text", text, x=x, y=y, text_anchor=anchor, fill="#333333") if text else None

    def layer(self, y: float, x: float, width: float, name: str, marks: str) -> None:
        """A layer's name at the left (the end of a long one), and its planes: 1 learned, F filled, . dropped."""
        self.text(8, y + 16, called(name) if len(name) <= 20 else f"\u2026{name[-19:]}")
        for i, mark in enumerate(marks):
            left = x + (width + 4) * i
            self.rect(left, y + 2, width, 18, {"1": BLUE, "F": ORANGE}.get(mark, "#e8e8e8"))
            self.text(left + width / 2, y + 16, "F" if mark == "F" else "", "middle")

    def svg(self, label: str) -> str:
        """The whole picture; ``label`` describes it to readers who cannot see it."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height:.0f}" width="{WIDTH}" '
            f'role="img" aria-label="{escape(label)}" font-family="sans-serif" font-size="14" '
            f'style="max-width: 100%; height: auto"><rect width="{WIDTH}" height="{self.height:.0f}" fill="white"/>'
            f"{''.join(self.parts)}</svg>"
        )


class Panel:
    """A plot across the canvas, below what is there: title, grid, numbers and curves."""

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
        return self.left + (self.right - self.left) * _share(value, *self.xlim)

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * _share(value, *self.ylim)

    def curve(self, xs: Sequence[float], ys: Sequence[float], color: str, dash: str = "0") -> None:
        self.canvas.line([(self.x(x), self.y(y)) for x, y in zip(xs, ys)], color, 2.5, dash)


def _share(value: float, low: float, high: float) -> float:
    """How far a value lies between two others, from 0 to 1; a value outside lies on the edge."""
    return (min(max(value, low), high) - low) / (high - low)


def nice_ticks(high: float, count: int = 4) -> list[float]:
    """Round numbers from 0 to at least ``high``, in about ``count`` steps."""
    raw = max(high, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= raw * (1 - 1e-9))
    return [step * i for i in range(math.ceil(high / step - 1e-9) + 1)]


def called(name: str) -> str:
    """A layer's name to show: a model that is one layer has none."""
    return name or "(model)"
