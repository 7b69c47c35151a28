"""The scoreboard: methods at equal bits and epochs on one bed, seed by seed, as a table and as a figure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from csq_mini import models, plots
from csq_mini.experiments.statistics import paired, summary
from csq_mini.report import paper_bits

from . import ROWS
from .tables import NAMES

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

SCHEMES: Mapping[str, str] = {
    "uniform": "uniform", "hand": "by hand", "random": "at random", "mse": "by squared error", "fisher": "by Fisher",
    "loss": "by measured loss", "pairs": "by pairs", "local-search": "by local search",
}  # fmt: skip
"""What pages call the schemes that a method is given."""

CLAIMS = ROWS.parent / "claims"
"""Where the workflow of the claims leaves its tables."""

SEED = ("seed", "fold")  # what two runs must share to be a pair


def runs_of(bed: str) -> pandas.DataFrame:
    """A line for each run of a bed of the claims' workflow, with the columns of rows that :func:`board` takes."""
    import pandas

    return pandas.read_csv(CLAIMS / f"{bed}.csv")


def trials(bed: str) -> pandas.DataFrame:
    """The trials of a bed: method, target, what was changed, ``validation`` accuracy, ``cut``, whether it was taken."""
    import pandas

    lines = []
    for setting in json.loads((CLAIMS / f"{bed}.json").read_text())["settings"]:
        name, _, scheme = setting["method"].partition("+")
        for trial in setting["tried"]:
            lines.append({"method": str(Entry(name, scheme or None)), "target": setting["target"], **trial["changes"],
                          "validation": trial["validation"], "cut": trial.get("cut", 0.0),
                          "taken": trial["changes"] == setting["changes"]})  # fmt: skip
    return pandas.DataFrame(lines)


def by_rate(bed: str, column: str = "validation") -> pandas.DataFrame:
    """The trials of a bed as a table, a column for each learning rate; in brackets what was not taken.

    ``column`` is "validation", an accuracy, or "cut", in bits a weight.
    """
    found, text = trials(bed), "{:.1%}" if column == "validation" else "{:.2f}"
    found["shown"] = [text.format(value) for value in found[column]]
    found.loc[~found["taken"], "shown"] = "(" + found["shown"] + ")"
    keys = [key for key in ("method", "target", "strength") if key in found and found[key].nunique() > 1]
    table = found.pivot(index=keys, columns="lr", values="shown").reset_index()
    return table.rename(columns={lr: f"rate {lr:g}" for lr in sorted(set(found["lr"]))}).rename_axis(columns=None)


class Entry(NamedTuple):
    """A method, and the scheme that it was given, if it was given one."""

    method: str
    scheme: str | None

    def __str__(self) -> str:
        return NAMES[self.method] + (f", {SCHEMES.get(self.scheme, self.scheme)}" if self.scheme else "")

    @property
    def short(self) -> str:
        """What was given, or the method that finds its own."""
        return SCHEMES.get(self.scheme, self.scheme).removeprefix("by ") if self.scheme else NAMES[self.method]


UNIFORM = Entry("planes", "uniform")

BED = {"model": "resnet20", "data": "cifar10", "profile": "held", "epochs": 3, "started": True}
"""ResNet-20 for three epochs from its float network: what :func:`~.verdicts.select` takes those rows by."""


def entry_of(row: Mapping[str, Any]) -> Entry:
    """The method of a row; pandas writes a scheme that is not there as None, or as NaN."""
    return Entry(row["method"], row["allocation"] if isinstance(row["allocation"], str) else None)


def entries(rows: pandas.DataFrame, against: Entry | None = UNIFORM) -> dict[Entry, dict[tuple[int, int], float]]:
    """Accuracy in percent by seed and fold, for each method of these rows; the best mean first.

    ValueError if there are two rows of one method and seed, or none of ``against``, if that is given.
    """
    found: dict[Entry, dict[tuple[int, int], float]] = {}
    for row in rows.to_dict("records"):
        seed = tuple(-1 if row[key] is None or row[key] != row[key] else int(row[key]) for key in SEED)
        runs = found.setdefault(entry_of(row), {})
        if seed in runs:
            raise ValueError(f"two rows of {row['method']} with seed {row['seed']}: {row['key']} is one of them")
        runs[seed] = 100 * row["accuracy"]  # type: ignore[index]
    if against and against not in found:
        raise ValueError(f"no row of {against}, with which the others are compared")
    return dict(sorted(found.items(), key=lambda item: -summary(item[1])["mean"]))


def over_seeds(runs: Mapping[tuple[int, int], float]) -> dict[int, float]:
    """Accuracy by seed, the mean over its folds where the data are cut into some."""
    seeds = dict.fromkeys(seed for seed, _ in runs)
    return {seed: statistics.fmean(value for (s, _), value in runs.items() if s == seed) for seed in seeds}


def board(rows: pandas.DataFrame, against: Entry = UNIFORM) -> pandas.DataFrame:
    """A line for each method: accuracy, bits, and how far ahead of ``against`` it is, seed by seed and fold by fold.

    The spread is that over seeds, of their means over the folds; ``n`` counts all runs.

    Args:
        rows: of one network, data set, target and number of epochs, as :func:`~.verdicts.select` gives them.
    """
    import pandas

    found, lines = entries(rows, against), []
    bits = {entry: [row["paper_bits"] for row in rows.to_dict("records") if entry_of(row) == entry] for entry in found}
    for entry, runs in found.items():
        mine = summary(over_seeds(runs))
        line = {"method": str(entry), "accuracy": f"{mine['mean']:.2f}%",
                "spread": f"{mine['sd']:.2f}" if mine["n"] > 1 else "one seed", "n": str(len(runs)),
                "bits": f"{statistics.fmean(bits[entry]):.3f}",
                "ahead by": "", "from, to": "", "seeds ahead": ""}  # fmt: skip
        pairs = [seed for seed in runs if seed in found[against]]
        if entry != against and pairs:
            ahead = paired(runs, found[against])
            won = sum(runs[seed] > found[against][seed] for seed in pairs)
            line |= {"ahead by": f"{ahead['mean']:+.2f}", "from, to": f"{ahead['low']:+.2f}, {ahead['high']:+.2f}",
                     "seeds ahead": f"{won} of {len(pairs)}"}  # fmt: skip
        lines.append(line)
    return pandas.DataFrame(lines)


def dots(rows: pandas.DataFrame, against: Entry = UNIFORM, line: float | None = None) -> Figure:
    """A dot for each run and a bar for each mean, a row a method; ``line`` marks an accuracy, such as that of float."""
    found = entries(rows, against)
    with plots.style() as colors:
        figure = plots.Picture(1.3 + 0.42 * len(found))
        ax = figure.subplots()
        for y, (entry, runs) in enumerate(found.items()):
            color = colors[1] if entry == against else colors[0] if entry.scheme is None else "0.45"
            ax.plot([*runs.values()], [y] * len(runs), "o", ms=7, mfc="none", mew=1.5, color=color)
            ax.plot([summary(runs)["mean"]] * 2, [y - 0.3, y + 0.3], color=color, lw=2.5, solid_capstyle="butt")
        if line is not None:
            ax.axvline(line, color="0.3", lw=1.2, ls="--")
        ax.set(yticks=range(len(found)), yticklabels=[str(entry) for entry in found], xlabel="accuracy (%)")
        ax.set_ylim(len(found) - 0.4, -0.6)
        ax.grid(axis="y", visible=False)
        return figure


def by_size(rows: pandas.DataFrame, against: Entry = UNIFORM, line: float | None = None) -> Figure:
    """Accuracy against the target, a line a method through the means, with bars from the lowest to the highest run.

    ``line`` marks an accuracy, such as that of the float network.
    """
    targets = sorted(set(rows["target"]))
    found = {target: entries(rows[rows["target"] == target], None) for target in targets}
    order = dict.fromkeys(entry for runs in found.values() for entry in runs)
    with plots.style() as colors:
        figure = plots.Picture(3.8)
        ax = figure.subplots()
        for k, (entry, look) in enumerate(zip(order, "osD^v<>p")):
            color = colors[1] if entry == against else colors[0] if entry.scheme is None else "0.45"
            runs = {target: [*found[target][entry].values()] for target in targets if entry in found[target]}
            means = [statistics.fmean(values) for values in runs.values()]
            reach = [[mean - min(values) for mean, values in zip(means, runs.values())],
                     [max(values) - mean for mean, values in zip(means, runs.values())]]  # fmt: skip
            xs = [target + 0.03 * (k - (len(order) - 1) / 2) for target in runs]  # side by side
            ax.errorbar(xs, means, reach, marker=look, ms=6, capsize=3, lw=1.2, color=color, label=entry.short)
        if line is not None:
            ax.axhline(line, color="0.3", lw=1.2, ls="--", label="float")
        ax.set_xticks(targets, [f"{target:g}" for target in targets])
        ax.set(xlabel="bits a weight, at most", ylabel="accuracy (%)")
        figure.legend(loc="outside upper center", ncols=3)
        return figure


def foretold(
    rows: pandas.DataFrame, losses: Mapping[str, float], random: Sequence[float], against: Entry = UNIFORM
) -> Figure:  # fmt: skip
    """Accuracy in the end against the training loss right after rounding, a mark a run, and losses of random schemes.

    Args:
        losses: of the rows, by their keys. random: of schemes that nobody trained; ticks at the foot of the figure.
    """
    with plots.style() as colors:
        figure = plots.Picture(3.6)
        ax = figure.subplots()
        for entry, look in zip(entries(rows, against), "osD^v<>p"):
            mine = [row for row in rows.to_dict("records") if entry_of(row) == entry]
            color = colors[1] if entry == against else colors[0] if entry.scheme is None else "0.45"
            xs, ys = [losses[row["key"]] for row in mine], [100 * row["accuracy"] for row in mine]
            ax.plot(xs, ys, look, ms=7, mfc="none", mew=1.5, color=color, label=entry.short)
        low, high = ax.get_ylim()
        ax.plot(random, [low - 0.06 * (high - low)] * len(random), "|", ms=12, mew=1.5, color="0.2", label="at random")
        ax.set(xscale="log", xlabel="training loss right after rounding", ylabel="accuracy (%)")
        ticks = [0.03, 0.05, 0.1, 0.2, 0.3]
        ax.set_xticks(ticks, map(str, ticks))
        ax.xaxis.minorticks_off()
        figure.legend(loc="outside upper center", ncols=3)
        return figure


def schemes(rows: pandas.DataFrame) -> Figure:
    """Planes of every layer, a column a scheme and a row a layer, from the input on, with its share of the weights.

    Columns stand in groups by method, each under its seed; a scheme that a method gave to all seeds stands once.
    """
    import numpy as np

    columns: dict[Entry, dict[str, list[int]]] = {}
    names, network = list(rows["scheme"].iloc[0]), models.get(rows["model"].iloc[0])()
    for row in rows.sort_values("seed").to_dict("records"):
        planes = [paper_bits(row["scheme"][name]) for name in names]
        columns.setdefault(entry_of(row), {})[str(row["seed"])] = planes
    for entry, found in columns.items():
        if len(found) > 1 and len({tuple(planes) for planes in found.values()}) == 1:
            columns[entry] = {"all": next(iter(found.values()))}
    groups = sorted(columns.items(), key=lambda group: (group[0].scheme is not None, str(group[0])))
    table = np.array([planes for _, found in groups for planes in found.values()]).T
    with plots.style():
        figure = plots.Picture(1.6 + 0.24 * len(names))
        ax = figure.subplots()
        ax.imshow(table, cmap="Blues", vmin=0, vmax=8, aspect="auto")
        for (y, x), k in np.ndenumerate(table):
            ax.text(x, y, str(k), ha="center", va="center", fontsize=10, color="white" if k > 4 else "0.15")
        ax.set(xticks=range(table.shape[1]), yticks=range(len(names)))
        sizes = {name: network.get_parameter(f"{name}.weight").numel() for name in names}
        labels = [f"{name}  {size / sum(sizes.values()):.1%}" for name, size in sizes.items()]
        ax.set_yticklabels(labels, fontsize=9)
        ax.set_xticklabels([seed for _, found in groups for seed in found])
        ax.tick_params(axis="x", labelsize=9, top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
        left = -0.5
        for entry, found in groups:
            ax.text(left + len(found) / 2, -1.5, entry.short, ha="center", va="bottom", fontsize=10)
            left += len(found)
            ax.axvline(left, color="white", lw=4)
        ax.grid(visible=False)
        return figure
