"""Pictures of the labs: SVG text, with no library for plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any

BLUE, ORANGE, GREY, INK = "#0173b2", "#de8f05", "#e8e8e8", "#333333"
WIDTH = 520  # of a picture, in its own units; on a page it is shown at most so wide


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


def stairs(xs: list[float], ys: list[float]) -> tuple[list[float], list[float]]:
    """Corners of a line that changes at its points only, as a slider and a number of planes do."""
    points = [(xs[0], ys[0])]
    for (_, before), (x, y) in pairwise(zip(xs, ys)):
        if y != before:
            points += [(x, before), (x, y)]
    points.append((xs[-1], ys[-1]))
    return [x for x, _ in points], [y for _, y in points]


def plane_color(mark: str) -> str:
    """Colour of a plane by its mark: 1 learned, F filled; any other is dropped."""
    return {"1": BLUE, "F": ORANGE}.get(mark, GREY)


def short(name: str, most: int = 20) -> str:
    """A name in so many letters at most: its end."""
    return name if len(name) <= most else "\u2026" + name[1 - most :]
