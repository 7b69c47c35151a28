"""Figures of results: accuracy against size, differences of verdicts, and the scheme of a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas
from matplotlib.figure import Figure

from csq_mini import models, plots
from csq_mini.experiments.rows import Row
from csq_mini.report import tabulate

from .verdicts import Verdict, best_rows, sample, weight_bits

CLASSES = {"cifar100": 100}  # the data sets here with other than ten classes


def scheme(row: Row) -> Figure:
    """The planes of a row's layers as in :func:`csq_mini.plots.scheme`; its network must be in ``csq.models``."""
    model = models.get(row.model)(num_classes=CLASSES.get(row.data, 10))
    shapes = {name: tuple(model.get_parameter(f"{name}.weight").shape) for name in row.scheme}
    layers = [(name, "", shapes[name], planes, 0) for name, planes in row.scheme.items()]
    return plots.scheme(tabulate(layers))


def accuracy_size(rows: pandas.DataFrame, published: Iterable[Mapping[str, Any]]) -> Figure:
    """Accuracy against bits a weight: means of our CSQ runs and published figures; float networks as lines.

    Args:
        rows: of one network and data set, see :func:`csq_book.results.verdicts.select`.
        published: ``figures`` of published.yml; those without a value or a size are left out.
    """
    with plots.style() as colors:
        figure = plots.Picture(4.4)
        ax = figure.subplots()
        for (name, points), color, marker in zip(_points(published).items(), ["0.45", *colors[1:]], "_sv^"):
            if name == "float":
                for _, y in points:
                    ax.axhline(y, color=color, lw=1.2, ls=":", label="float, published")
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


def _points(published: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Kind of figure (its name up to a comma) -> points (bits a weight, value)."""
    points: dict[str, list[tuple[float, float]]] = {}
    for figure in published:
        bits = weight_bits(figure)
        if bits is not None and figure["value"] is not None:
            points.setdefault(figure["what"].partition(",")[0], []).append((bits, figure["value"]))
    return points


def differences(found: Sequence[Verdict]) -> Figure:
    """A bar for each verdict: how many points its runs lie above or below what they are compared with."""
    with plots.style() as colors:
        figure = plots.Picture(1.2 + 0.42 * len(found))
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
