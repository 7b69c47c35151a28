"""Figures of what ``fit`` and ``report`` return, in one style: safe for the colour-blind, on a white ground."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
import pandas
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .check import shown
from .report import Report
from .scheme import Integers

WIDTH = 5.0  # inches, 480 pixels on a page
BLUE, ORANGE, GREEN = "#0173b2", "#c97f00", "#029e73"
COLORS = (BLUE, ORANGE, GREEN, "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9")
"""Seaborn's "colorblind" with a darker orange: the first four have a contrast of 3 to 1 with white and a dark page."""

LOOK: dict[Any, Any] = {
    "figure.facecolor": "white", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "0.4",
    "axes.labelsize": 12, "axes.titlesize": 12, "xtick.labelsize": 11.5, "ytick.labelsize": 11.5,
    "legend.fontsize": 11.5, "legend.frameon": False, "grid.color": "0.9", "lines.linewidth": 2,
    "figure.constrained_layout.w_pad": 0.1, "figure.constrained_layout.h_pad": 0.1,
}  # fmt: skip


@contextmanager
def style() -> Iterator[list[tuple[float, float, float]]]:
    """The look of these figures, for one of your own; yields the palette as triples of red, green and blue."""
    palette = sns.color_palette(COLORS)
    with sns.axes_style("whitegrid"), sns.color_palette(palette), matplotlib.rc_context(LOOK):
        yield palette


class Picture(Figure):
    """A figure as wide as the page, which a notebook shows as SVG; it is the same to the byte each time.

    Write ``Picture(height)`` within :func:`style`, then ``.subplots()`` as usual. Pyplot does not know it.
    """

    def __init__(self, height: float = 2.4, **settings: Any):
        super().__init__(**{"figsize": (WIDTH, height), "layout": "constrained"} | settings)

    def svg(self) -> str:
        """The text of an SVG file, with letters as outlines."""
        text = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": "csq", "svg.fonttype": "path"}):
            self.savefig(text, format="svg", metadata={"Date": None})
        return text.getvalue()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display({"image/svg+xml": self.svg(), "text/plain": repr(self)}, raw=True)


def _label(name: str) -> str:
    """A layer's name as plain text: no control characters, no mathematics between dollars, its middle cut if long."""
    text = shown(name)
    text = text if len(text) <= 32 else f"{text[:15]}\u2026{text[-16:]}"
    return text.replace("$", r"\$")


def _size(height: float, names: Iterable[str]) -> tuple[float, float]:
    """Of a figure with these labels: wider than a page where they are long."""
    return WIDTH + 0.13 * max(0, *(len(name) - 21 for name in names)), height


def _check_history(history: Any, *columns: str) -> None:
    if not isinstance(history, pandas.DataFrame) or not {"epoch", "phase", *columns} <= set(history) or history.empty:
        raise ValueError(f"history must be the DataFrame that csq.fit returned as result.history, with "
                         f"{', '.join(columns)}, got {type(history).__name__}")  # fmt: skip


def training(history: pandas.DataFrame) -> Figure:
    """Loss, temperature, and soft and hard accuracy over the epochs of :func:`csq_mini.fit`."""
    _check_history(history, "loss", "soft", "hard")
    names = [name for name in ("loss", "beta", "soft") if name in history]
    with style() as colors:
        figure = Picture(2.0 * len(names))
        axes = dict(zip(names, figure.subplots(len(names), 1, sharex=True)))
        axes["loss"].plot(history["epoch"], history["loss"], color=colors[0])
        axes["loss"].set(ylabel="training loss")
        if "beta" in axes:
            axes["beta"].semilogy(history["epoch"], history["beta"], color=colors[2])
            axes["beta"].set(ylabel=r"temperature $\beta$", ylim=(min(0.8, history["beta"].min()), None))
        axes["soft"].plot(history["epoch"], history["soft"], color=colors[0], label="soft, as it trains")
        axes["soft"].plot(history["epoch"], history["hard"], color=colors[3], ls="--", label="hard, recalibrated")
        axes["soft"].set(ylabel="accuracy", xlabel="epoch", ylim=(0, 1.03))
        axes["soft"].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0)
        figure.align_ylabels()
        _mark_freeze(history, *axes.values())
        return figure


def bits(history: pandas.DataFrame, target: float | None = None) -> Figure:
    """Bits a weight over the epochs, and below them the open planes of each layer."""
    _check_history(history, "bits")
    names = [column for column in history if column.startswith("bits/")]
    labels = [_label(name.removeprefix("bits/")) for name in names]
    with style() as colors:
        figure = Picture(figsize=_size(2.6 + 0.27 * len(names), labels))
        top, ax = figure.subplots(2, 1, sharex=True, height_ratios=(1.3, 0.27 * len(names)))
        top.plot(history["epoch"], history["bits"], color=colors[0], marker=".", label="average $B$")
        if target is not None:
            top.axhline(target, color=colors[3], ls="--", lw=1.5, label=rf"target $\tau$ = {target:g}")
        top.set(ylabel="bits a weight", ylim=(0, max(history["bits"].max(), target or 0) * 1.25))
        top.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        top.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0)
        scale = ScalarMappable(Normalize(-0.5, 8.5), matplotlib.colormaps["YlGnBu"].resampled(9))
        _draw_stretches(ax, history[names].to_numpy().T, scale)
        ax.set(yticks=range(len(names)), yticklabels=labels)
        ax.set(xlim=(0.5, len(history) + 0.5), ylim=(len(names) - 0.4, -0.6), xlabel="epoch", ylabel="layer")
        ax.grid(False)
        _mark_freeze(history, top, ax)
        figure.colorbar(scale, ax=ax, label="open planes", ticks=range(0, 9, 2), pad=0.07).outline.set_visible(False)
        return figure


def _draw_stretches(ax: Axes, planes: np.ndarray, scale: ScalarMappable) -> None:
    """Draw a bar for each stretch of equal numbers in ``planes`` ``[layers, epochs]``, and write the last number."""
    for y, numbers in enumerate(planes):
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        widths = np.diff(starts, append=len(numbers))
        ax.barh(y, widths, 0.9, left=starts + 0.5, color=scale.to_rgba(numbers[starts]), lw=0)
        ax.text(len(numbers) + 0.5, y, f" {numbers[-1]}", va="center", fontsize=11.5)


def scheme(report: Report) -> Figure:
    """Planes of each layer as squares, the most significant on the left, beside its share of the weights."""
    if not isinstance(report, Report) or not report.rows:
        raise ValueError(f"plots.scheme draws what csq.report(model) returns, got {type(report).__name__}")
    names, marks, shares = zip(*((_label(layer.name), layer.planes, layer.share) for layer in report.rows))
    n, count = max(map(len, marks)), len(names)
    with style() as colors:
        figure = Picture(figsize=_size(1.4 + 0.3 * count, names))
        ax, side = figure.subplots(1, 2, sharey=True, width_ratios=(n, 4))
        look = {"1": (colors[0], None, "learned"), "F": (colors[1], "///", "filled"), ".": ("0.91", None, "dropped")}
        for mark, (color, hatch, label) in look.items():
            at = [(x, y) for y, planes in enumerate(marks) for x, m in enumerate(planes, n - len(planes)) if m == mark]
            if at:
                xs, ys = np.array(at).T
                edge = "white" if hatch else "none"  # an edge that is not drawn would still double the file
                ax.bar(xs + 0.5, 0.8, 0.88, ys - 0.4, color=color, ec=edge, lw=0, hatch=hatch, label=label)
        ax.set(xlim=(0, n), xticks=np.arange(n) + 0.5, xticklabels=range(n - 1, -1, -1), xlabel="plane")
        ax.set(ylim=(count - 0.4, -0.6), yticks=range(count), yticklabels=names, ylabel="layer")
        side.barh(range(count), [100 * share for share in shares], color="0.65")
        for y, share in enumerate(shares):
            text = f"{share:.0%}" if share >= 0.005 else "<1%"
            side.text(100 * share, y, f" {text}", va="center", fontsize=11.5)
        side.set(xlabel="share of\nweights", xticks=[], xlim=(0, 145 * max(shares)))
        for axis in (ax, side):
            axis.grid(False)
            axis.tick_params(left=False, bottom=False)
            sns.despine(ax=axis, left=axis is ax, bottom=True)
        figure.legend(loc="outside upper center", ncols=3)
        return figure


def weights(before: Tensor, after: Integers, name: str = "") -> Figure:
    """Histograms of a layer's float weights and of its integers."""
    if not isinstance(before, Tensor) or not isinstance(after, Integers):
        raise ValueError("plots.weights draws a float weight and its csq.integers(model)[name], got "
                         f"{type(before).__name__} and {type(after).__name__}")  # fmt: skip
    codes, counts = np.unique(after.codes.numpy().ravel(), return_counts=True)
    title = f"layer {_label(name)}, " if name else ""
    reach = 1.1 * max(abs(codes).max(), 1)
    with style() as colors:
        figure = Picture(4.6)
        top, ax = figure.subplots(2, 1)
        top.hist(before.detach().cpu().numpy().ravel(), bins=40, color=colors[0])
        top.set(title=f"{title}before: float", ylabel="how many", xlabel="weight")
        ax.bar(codes, counts, width=min(0.8, 0.05 * reach), color=colors[1])
        ax.set(title=f"{title}after: {_count(len(codes), 'value')}, {_count(len(after.planes), 'plane')}",
               ylabel="how many", xlabel=f"code, in steps of {after.step:.3g}", xlim=(-reach, reach))  # fmt: skip
        for axis, whole in ((top, False), (ax, True)):
            axis.xaxis.set_major_locator(MaxNLocator(8, integer=whole, symmetric=True))
            axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            axis.grid(axis="x", visible=False)
        figure.align_ylabels([top, ax])
        return figure


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _mark_freeze(history: pandas.DataFrame, *axes: Axes) -> None:
    """Draw a dotted line between search and finetune, labelled in the first axes."""
    epoch = float((history["phase"] == "search").sum()) + 0.5
    axes[0].xaxis.set_major_locator(MaxNLocator(7, integer=True))  # they share their x axis
    if 1 < epoch < len(history):
        for ax in axes:
            ax.axvline(epoch, color="0.3", lw=1.2, ls=":")
        axes[0].text(epoch, 0.97, " freeze", transform=axes[0].get_xaxis_transform(), va="top", fontsize=11.5)
