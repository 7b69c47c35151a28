"""Figures of a run and of a scheme, in one style: colour-blind safe, on an opaque light ground.

Each function draws from what :func:`csq_mini.fit` or :func:`csq_mini.report` returned and gives back
the matplotlib figure.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
import pandas
import seaborn as sns
from matplotlib.figure import Figure
from torch import Tensor

from .conversion import Integers
from .reports import Report

WIDTH = 7.2  # inches; a page's column


@contextmanager
def style() -> Iterator[list[tuple[float, float, float]]]:
    """The book's look for a figure of your own; yields the palette (seaborn's "colorblind")."""
    palette = sns.color_palette("colorblind")
    ground = {"figure.facecolor": "white", "savefig.facecolor": "white", "axes.spines.top": False,
              "axes.spines.right": False, "grid.color": "0.9", "legend.frameon": False}  # fmt: skip
    with sns.axes_style("whitegrid", ground), sns.plotting_context("notebook", font_scale=0.9), sns.color_palette(palette):
        yield palette


def training(history: pandas.DataFrame) -> Figure:
    """Loss, temperature, and soft against hard accuracy over the epochs of a run."""
    with style() as colors:
        figure, axes = plt.subplots(3, 1, figsize=(WIDTH, 5.6), sharex=True, layout="constrained")
        epoch = history["epoch"]
        axes[0].plot(epoch, history["loss"], color=colors[0])
        axes[0].set(ylabel="training loss")
        axes[1].semilogy(epoch, history["beta"], color=colors[1])
        axes[1].set(ylabel=r"temperature $\beta$")
        axes[2].plot(epoch, history["soft"], color=colors[0], label="soft, as it trains")
        axes[2].plot(epoch, history["hard"], color=colors[3], ls="--", label="hard, recalibrated")
        axes[2].set(ylabel="accuracy\n(validation)", xlabel="epoch", ylim=(0, 1.03))
        axes[2].legend(loc="lower right")
        for ax in axes:
            _mark_freeze(ax, history)
        axes[0].text(_freeze(history), 0.95, " freeze", transform=axes[0].get_xaxis_transform(), va="top")
        return figure


def bits(history: pandas.DataFrame, target: float | None = None) -> Figure:
    """Planes open in each layer over the epochs, and above them the size-weighted average."""
    layers = [column for column in history if column.startswith("bits/")]
    planes = history[layers].to_numpy().T
    with style() as colors:
        figure, (top, ax) = plt.subplots(2, 1, figsize=(WIDTH, 1.9 + 0.32 * len(layers)), sharex=True,
                                         height_ratios=(1.3, 0.32 * len(layers)), layout="constrained")  # fmt: skip
        top.plot(history["epoch"], history["bits"], color=colors[0], marker=".", label="average B")
        if target is not None:
            top.axhline(target, color=colors[3], ls="--", label=rf"target $\tau$ = {target:g}")
        top.set(ylabel="bits a weight", ylim=(0, None))
        top.legend(loc="upper right")
        edges = np.append(history["epoch"] - 0.5, history["epoch"].iloc[-1] + 0.5)
        mesh = ax.pcolormesh(edges, np.arange(len(layers) + 1), planes, cmap="cividis_r", vmin=0, vmax=8)
        ax.set(yticks=np.arange(len(layers)) + 0.5, yticklabels=[c.removeprefix("bits/") for c in layers],
               xlabel="epoch", ylabel="layer")  # fmt: skip
        ax.invert_yaxis()
        ax.grid(False)
        for axis in (top, ax):
            _mark_freeze(axis, history)
        figure.colorbar(mesh, ax=ax, label="planes", ticks=range(0, 9, 2))
        return figure


def scheme(report: Report) -> Figure:
    """Planes of each layer as squares, most significant left, beside the layer's share of weights."""
    with style() as colors:
        figure, (ax, side) = plt.subplots(1, 2, figsize=(WIDTH, 0.9 + 0.32 * len(report.rows)), sharey=True,
                                          width_ratios=(3, 2), layout="constrained")  # fmt: skip
        look = {"1": (colors[0], "learned"), "F": (colors[1], "filled at the freeze"), ".": ("0.92", "dropped")}
        for y, row in enumerate(report.rows):
            for x, mark in enumerate(row.planes):
                ax.add_patch(plt.Rectangle((x + 0.05, y - 0.4), 0.9, 0.8, color=look[mark][0]))
        n = max(len(row.planes) for row in report.rows)
        ax.set(xlim=(0, n), ylim=(len(report.rows) - 0.4, -0.6), xticks=np.arange(n) + 0.5, xticklabels=range(n - 1, -1, -1),
               yticks=range(len(report.rows)), yticklabels=[row.name for row in report.rows],
               xlabel="plane", ylabel="layer")  # fmt: skip
        ax.grid(False)
        handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color, _ in look.values()]
        figure.legend(handles, [text for _, text in look.values()], loc="outside upper center", ncols=3)
        side.barh(range(len(report.rows)), [100 * row.share for row in report.rows], color="0.6")
        side.set(xlabel="share of the weights, %")
        side.grid(axis="y", visible=False)
        return figure


def weights(before: Tensor, after: Integers, name: str = "") -> Figure:
    """Histogram of a layer's float weights, and the few values its integers leave."""
    values, counts = np.unique(after.codes.numpy().ravel(), return_counts=True)
    with style() as colors:
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.8), sharey=False, layout="constrained")
        left.hist(before.detach().cpu().numpy().ravel(), bins=40, color=colors[0])
        left.set(title="before: float", xlabel="weight", ylabel="how many")
        right.bar(values * after.step, counts, width=0.8 * abs(after.step), color=colors[1])
        right.set(title=f"after: {len(values)} values, {len(after.planes)} planes", xlabel="weight = step x code")
        if name:
            figure.suptitle(f"layer {name}")
        return figure


def _freeze(history: pandas.DataFrame) -> float:
    return float((history["phase"] == "search").sum()) + 0.5


def _mark_freeze(ax: plt.Axes, history: pandas.DataFrame) -> None:
    ax.axvline(_freeze(history), color="0.4", lw=1, ls=":")
