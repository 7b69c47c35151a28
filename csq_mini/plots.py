"""Figures of a run and of a scheme, in one style: colour-blind safe, on an opaque light ground.

Each function draws from what :func:`csq_mini.fit` or :func:`csq_mini.report` returned and gives back
a matplotlib figure, which a notebook shows as SVG: sharp on every screen and, at WIDTH, with letters
that a phone's column leaves legible.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
import pandas
import seaborn as sns
from csq_book.verdicts import Verdict, best_rows, sample, weight_bits
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from . import models
from .experiments.rows import Row
from .report import Report
from .scheme import Integers

WIDTH = 5.0  # inches, 480 pixels on a page
CLASSES = {"cifar100": 100}  # of the data sets that have not ten

LOOK: dict[Any, Any] = {
    "figure.facecolor": "white", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "0.4",
    "axes.labelsize": 12, "axes.titlesize": 12, "xtick.labelsize": 11.5, "ytick.labelsize": 11.5,
    "legend.fontsize": 11.5, "legend.frameon": False, "grid.color": "0.9", "lines.linewidth": 2,
    "figure.constrained_layout.w_pad": 0.1, "figure.constrained_layout.h_pad": 0.1,
}  # fmt: skip


@contextmanager
def style() -> Iterator[list[tuple[float, float, float]]]:
    """The book's look for a figure of your own; yields the palette (seaborn's "colorblind")."""
    palette = sns.color_palette("colorblind")
    with sns.axes_style("whitegrid"), sns.color_palette(palette), matplotlib.rc_context(LOOK):
        yield palette


class Picture(Figure):
    """A figure of the page's width that a notebook shows once, as SVG, the same bytes each time.

    ``Picture(height)`` within :func:`style`, then ``.subplots()`` and so on; pyplot knows nothing of it.
    """

    def __init__(self, height: float = 2.4, **settings: Any):
        super().__init__(**{"figsize": (WIDTH, height), "layout": "constrained"} | settings)

    def svg(self) -> str:
        """The picture as the text of an SVG file, its letters drawn as outlines."""
        text = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": "csq", "svg.fonttype": "path"}):
            self.savefig(text, format="svg", metadata={"Date": None})
        return text.getvalue()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display({"image/svg+xml": self.svg(), "text/plain": repr(self)}, raw=True)


def training(history: pandas.DataFrame) -> Figure:
    """Loss, temperature (of a CSQ run), and soft against hard accuracy over the epochs."""
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
    """Size-weighted average of the bits over the epochs, and below it the planes open in each layer.

    The number at the end of a row is what the layer keeps.
    """
    names = [column for column in history if column.startswith("bits/")]
    planes = history[names].to_numpy().T
    with style() as colors:
        figure = Picture(2.6 + 0.27 * len(names))
        top, ax = figure.subplots(2, 1, sharex=True, height_ratios=(1.3, 0.27 * len(names)))
        top.plot(history["epoch"], history["bits"], color=colors[0], marker=".", label="average $B$")
        if target is not None:
            top.axhline(target, color=colors[3], ls="--", lw=1.5, label=rf"target $\tau$ = {target:g}")
        top.set(ylabel="bits a weight", ylim=(0, max(history["bits"].max(), target or 0) * 1.25))
        top.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        top.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0)
        scale = ScalarMappable(Normalize(-0.5, 8.5), matplotlib.colormaps["YlGnBu"].resampled(9))
        for y, row in enumerate(planes):
            starts = np.flatnonzero(np.diff(row, prepend=-1))  # a bar for each stretch of equal numbers
            widths = np.diff(starts, append=len(row))
            ax.barh(y, widths, 0.9, left=starts + 0.5, color=scale.to_rgba(row[starts]), lw=0)
            ax.text(len(row) + 0.5, y, f" {row[-1]}", va="center", fontsize=11.5)
        ax.set(yticks=range(len(names)), yticklabels=[name.removeprefix("bits/") for name in names])
        ax.set(xlim=(0.5, len(history) + 0.5), ylim=(len(names) - 0.4, -0.6), xlabel="epoch", ylabel="layer")
        ax.grid(False)
        _mark_freeze(history, top, ax)
        bar = figure.colorbar(scale, ax=ax, label="open planes", ticks=range(0, 9, 2), pad=0.07)
        bar.outline.set_visible(False)
        return figure


def scheme(report: Report | Row) -> Figure:
    """Planes of each layer as squares, most significant left, beside the layer's share of weights.

    ``report`` may also be a row of results, of a network that ``csq.models`` has.
    """
    layers = _shares(report) if isinstance(report, Row) else [(r.name, r.planes, r.share) for r in report.rows]
    names, marks, shares = zip(*layers)
    n = max(map(len, marks))
    with style() as colors:
        figure = Picture(1.4 + 0.3 * len(layers))
        ax, side = figure.subplots(1, 2, sharey=True, width_ratios=(n, 4))
        look = {"1": (colors[0], None, "learned"), "F": (colors[1], "///", "filled"), ".": ("0.91", None, "dropped")}
        for y, (_, planes, share) in enumerate(layers):
            for x, mark in enumerate(planes, n - len(planes)):
                color, hatch, _ = look[mark]
                edge = "white" if hatch else "none"  # what is not drawn is not written either: half the bytes
                ax.add_patch(Rectangle((x + 0.06, y - 0.4), 0.88, 0.8, fc=color, ec=edge, lw=0, hatch=hatch,
                                       clip_on=False))  # fmt: skip
            text = f"{share:.0%}" if share >= 0.005 else "<1%"
            side.text(100 * share, y, f" {text}", va="center", fontsize=11.5)
        ax.set(xlim=(0, n), xticks=np.arange(n) + 0.5, xticklabels=range(n - 1, -1, -1), xlabel="plane")
        ax.set(ylim=(len(layers) - 0.4, -0.6), yticks=range(len(layers)), yticklabels=names, ylabel="layer")
        side.barh(range(len(layers)), [100 * share for share in shares], color="0.65")
        side.set(xlabel="share of\nweights", xticks=[], xlim=(0, 145 * max(shares)))
        for axis in (ax, side):
            axis.grid(False)
            axis.tick_params(left=False, bottom=False)
            sns.despine(ax=axis, left=axis is ax, bottom=True)
        shown = [look[mark] for mark in look if mark in "".join(marks)]
        handles = [Rectangle((0, 0), 1, 1, fc=color, ec="white", lw=0, hatch=hatch) for color, hatch, _ in shown]
        figure.legend(handles, [text for *_, text in shown], loc="outside upper center", ncols=3)
        return figure


def _shares(row: Row) -> list[tuple[str, str, float]]:
    """Name, planes and share of all quantized weights, a layer; a row knows the planes, and its network the rest."""
    model = models.get(row.model)(num_classes=CLASSES.get(row.data, 10))
    counts = {name: model.get_parameter(f"{name}.weight").numel() for name in row.scheme}
    return [(name, planes, counts[name] / sum(counts.values())) for name, planes in row.scheme.items()]


def accuracy_size(rows: pandas.DataFrame, figures: Iterable[Mapping[str, Any]]) -> Figure:
    """Accuracy against bits a weight: means of our CSQ runs, and published figures; float networks as lines.

    Args:
        rows: of one network and data set, see :func:`csq_mini.verdicts.select`.
        figures: of published.yml; those without a value or a size are left out.
    """
    with style() as colors:
        figure = Picture(4.4)
        ax = figure.subplots()
        for (name, points), color, marker in zip(_published_points(figures).items(), ["0.45", *colors[1:]], "_sv^"):
            if name == "float":
                for y, label in zip([y for _, y in points], ["float, published", *[""] * len(points)]):
                    ax.axhline(y, color=color, lw=1.2, ls=":", label=label)
            else:
                ax.plot(*zip(*points), ls="", marker=marker, ms=8, mfc="white", mew=1.5, color=color, label=name)
        for (method, _), group in rows.groupby(["method", "target"], dropna=False):
            best = best_rows(group)
            if method == "float" and len(best):
                ax.axhline(sample(best).mean, color=colors[0], lw=1.5, ls="--", label="float, ours")
            elif method == "csq" and len(best):
                ours, look = sample(best), {"full": "o", "cpu": "D"}[best["profile"].iloc[0]]
                ax.errorbar(best["paper_bits"].mean(), ours.mean, ours.spread or 0, fmt=look, ms=8, capsize=4,
                            color=colors[0], label=f"CSQ, ours ({best['profile'].iloc[0]})", zorder=3)  # fmt: skip
        ax.set(xlabel="bits a weight", ylabel="accuracy (%)", xlim=(0.8, 4.3), xticks=range(1, 5))
        ax.margins(y=0.1)
        by_label = dict(zip(*reversed(ax.get_legend_handles_labels())))  # each name once
        figure.legend(by_label.values(), by_label, loc="outside upper center", ncols=2)
        return figure


def _published_points(figures: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Kind of figure -> its points, bits a weight and value; the kind is what it says up to a comma."""
    points: dict[str, list[tuple[float, float]]] = {}
    for figure in figures:
        bits = weight_bits(figure)
        if bits is not None and figure["value"] is not None:
            points.setdefault(figure["what"].partition(",")[0], []).append((bits, figure["value"]))
    return points


def differences(found: Sequence[Verdict]) -> Figure:
    """A bar for each verdict: how many points its runs lie above or below what they are compared with."""
    with style() as colors:
        figure = Picture(1.2 + 0.42 * len(found))
        ax = figure.subplots()
        points = [verdict.difference or 0.0 for verdict in found]
        for y, (x, verdict) in enumerate(zip(points, found)):
            ax.barh(y, x, 0.6, color=colors[0] if x >= 0 else colors[1])
            text = "not run" if verdict.difference is None else f"{x:+.2f}".replace("-", "\u2212")
            ax.annotate(text, (max(x, 0), y), (4, 0), textcoords="offset points", va="center", fontsize=11.5)
        ax.axvline(0, color="0.3", lw=1.2)
        ax.set(yticks=range(len(found)), yticklabels=[verdict.claim["what"] for verdict in found])
        ax.set(ylim=(len(found) - 0.4, -0.6), xlabel="difference (points)")
        low, high = min([0.0, *points]), max([0.0, *points])
        reach = max(high - low, 1.0)
        ax.set_xlim(low - 0.1 * reach, high + 0.35 * reach)  # room for the text
        ax.grid(axis="y", visible=False)
        return figure


def weights(before: Tensor, after: Integers, name: str = "") -> Figure:
    """Histogram of a layer's float weights, and the few values its integers leave."""
    codes, counts = np.unique(after.codes.numpy().ravel(), return_counts=True)
    title = f"layer {name}, " if name else ""
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
    return f"{number} {noun}" + "s" * (number != 1)


def _mark_freeze(history: pandas.DataFrame, *axes: Axes) -> None:
    """A dotted line between search and finetune, named at the top of the first axes."""
    epoch = float((history["phase"] == "search").sum()) + 0.5
    for ax in axes:
        ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        if 1 < epoch < len(history):
            ax.axvline(epoch, color="0.3", lw=1.2, ls=":")
    if 1 < epoch < len(history):
        axes[0].text(epoch, 0.97, " freeze", transform=axes[0].get_xaxis_transform(), va="top", fontsize=11.5)
