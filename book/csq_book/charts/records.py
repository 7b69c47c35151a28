"""Charts of recorded runs (book/results/charts.json): gates, masks, and accuracy against size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from csq_mini.plots import BLUE, ORANGE

from .live import Live, axis, sigmoid, slider


def histogram(record: Mapping[str, Any]) -> Live:
    """Histogram of a recorded run's bit gates at every epoch: sigmoid(beta x) of 200 quantiles of its logits."""
    epochs = next(run["gates"] for run in record["runs"] if "gates" in run)
    values = [{"epoch": row["epoch"], "beta": row["beta"], "x": [round(x, 3) for x in row["logits"]]} for row in epochs]
    data = alt.Data(values=values)
    bars = alt.Chart().mark_rect(color=BLUE).encode(
        x=alt.X("bin:Q", axis=axis("opening of the gate"), scale=alt.Scale(domain=[0, 1])), x2="end:Q",
        y=alt.Y("share:Q", axis=axis("share of the gates", format="%"), scale=alt.Scale(domain=[0, 1])),
        y2=alt.Y2Datum(0))  # fmt: skip
    chart = (
        alt.layer(bars, data=data)
        .transform_filter("datum.epoch == epoch")
        .transform_flatten(["x"])
        .transform_calculate(gate=sigmoid("datum.beta * datum.x"))
        .transform_calculate(bin="min(floor(datum.gate * 20), 19) / 20")
        .transform_aggregate(count="count()", groupby=["bin"])
        .transform_calculate(share=f"datum.count / {len(epochs[0]['logits'])}", end="datum.bin + 0.046")
        .properties(height=240)
    )
    betas = json.dumps([round(row["beta"], 2) for row in epochs])
    phases = json.dumps([row["phase"] for row in epochs])
    params = [slider("epoch", "Epoch", 1, len(epochs), 1, 6)]
    words = (f"'Epoch ' + epoch + ', ' + {phases}[epoch - 1] + ': \u03b2 = ' + format({betas}[epoch - 1], '.1f') + '.'")
    return Live("histogram", chart, params, words.replace('"', "'"), """Bars: the share of a network's bit gates at each
        opening from 0 to 1, after the epoch that a slider sets. At the start the gates stand between the ends; as the
        temperature rises they move to the two ends, and again in the finetune.""")


def masks(record: Mapping[str, Any]) -> Live:
    """Masks of every layer over the epochs of recorded runs; a slider chooses the budget."""
    runs = [run for run in record["runs"] if "open" in run]
    layers, search = list(runs[0]["open"]), runs[0]["search_epochs"]
    values = [{"budget": run["target"], "layer": name, "open": numbers, "filled": run["filled"][name]}
              for run in runs for name, numbers in run["open"].items()]  # fmt: skip
    epochs = len(values[0]["open"])
    names = ["open", "filled at the freeze"]
    y = alt.Y("layer:N", sort=layers, axis=alt.Axis(title=None, domain=False, ticks=False, labelPadding=6),
              scale=alt.Scale(domain=layers, paddingInner=0.18, paddingOuter=0.05))  # fmt: skip
    x = alt.X("from:Q", axis=axis("epoch", grid=False, tickCount=6), scale=alt.Scale(domain=[0, epochs], nice=False))
    ground = alt.Chart(alt.Data(values=[{"layer": name, "from": 0, "epoch": epochs} for name in layers])).mark_rect(
        color="currentColor", opacity=0.08).encode(x=x, x2="epoch:Q", y=y)  # fmt: skip
    filled = f"datum.epoch > {search} && floor(datum.filled / pow(2, datum.plane)) % 2 == 1"
    rows = alt.Scale(domain=list(range(7, -1, -1)), paddingInner=0.15)
    color = alt.Scale(domain=names, range=[BLUE, ORANGE])
    planes = (
        alt.Chart(alt.Data(values=values)).mark_rect()
        .transform_filter("datum.budget == budget")
        .transform_calculate(epoch=f"sequence(1, {epochs + 1})", plane="sequence(0, 8)")
        .transform_flatten(["open", "epoch"])
        .transform_flatten(["plane"])
        .transform_filter("floor(datum.open / pow(2, datum.plane)) % 2 == 1")
        .transform_calculate(kind=f"{filled} ? '{names[1]}' : '{names[0]}'", **{"from": "datum.epoch - 1"})
        .encode(x=x, x2="epoch:Q", y=y, yOffset=alt.YOffset("plane:O", sort="descending", scale=rows),
                color=alt.Color("kind:N", scale=color, legend=alt.Legend(labelLimit=300)))
    )  # fmt: skip
    freeze = alt.Chart(alt.Data(values=[{"from": search}])).mark_rule(strokeDash=[4, 3], strokeWidth=1.5).encode(x=x)
    chart = alt.layer(ground, planes, freeze).properties(height=46 * len(layers))
    said = [f"Budget {run['target']}: {run['bits']:.2f} bits a weight in the end. "
            + "Planes kept: " + ", ".join(f"{name.split('.')[0]} {k}" for name, k in run["scheme"].items()) + "."
            for run in runs]  # fmt: skip
    params = [slider("budget", "Budget (bits a weight)", 1, len(runs), 1, 2)]
    return Live("masks", chart, params, f"{said}[budget - 1]", """A row for each layer of the network, in it eight thin
        rows for its planes, the most significant at the top, over the epochs. A bar lasts while a plane is open. A
        slider sets the budget; a dashed line is the freeze. Small budgets close many planes in the search.""")


def front(record: Mapping[str, Any]) -> Live:
    """Accuracy against size of recorded runs; a slider marks a budget. B is computed from each scheme."""
    runs = [run for run in record["runs"] if run["target"] is not None]
    floats = [100 * run["accuracy"] for run in record["runs"] if run["target"] is None]
    weights = runs[0]["weights"]
    bits = " + ".join(f"{n} * datum.planes[{i}]" for i, n in enumerate(weights.values()))
    values = [{"budget": run["target"], "seed": run["seed"], "accuracy": round(100 * run["accuracy"], 2),
               "bytes": run["bytes"], "planes": list(run["scheme"].values())} for run in runs]  # fmt: skip
    told = " + ', ' + ".join(f"'{name.split('.')[0]} ' + datum.planes[{i}]" for i, name in enumerate(weights))
    x = alt.X("kilobytes:Q", axis=axis("size (kB)"), scale=alt.Scale(zero=False, padding=12))
    y = alt.Y("accuracy:Q", axis=axis("accuracy (%)"), scale=alt.Scale(zero=False, padding=12))
    tips = [alt.Tooltip("budget:Q"), alt.Tooltip("bits:Q", title="bits a weight", format=".3f"), alt.Tooltip("seed:Q"),
            alt.Tooltip("accuracy:Q", title="accuracy (%)", format=".2f"), alt.Tooltip("bytes:Q"),
            alt.Tooltip("layers:N", title="planes")]  # fmt: skip
    means = {"x": alt.X("size:Q", scale=alt.Scale(zero=False)), "y": alt.Y("mean:Q")}
    chosen = alt.Chart().transform_filter("datum.budget == budget")
    lines = [
        alt.Chart().mark_line(color=BLUE, strokeWidth=1.5).encode(**means),
        alt.Chart().mark_point(color=BLUE, size=50, opacity=1).encode(x=x, y=y, tooltip=tips),
        chosen.mark_point(color=ORANGE, shape="diamond", size=330, strokeWidth=3, opacity=1).encode(**means),
        chosen.mark_point(color=ORANGE, filled=True, size=60, opacity=1).encode(x=x, y=y, tooltip=tips),
    ]
    if floats:
        mean = round(sum(floats) / len(floats), 2)
        rule = alt.Chart(alt.Data(values=[{"accuracy": mean}])).mark_rule(strokeDash=[6, 4]).encode(y=y)
        lines = [rule, rule.mark_text(text="float", align="left", dy=-7).encode(x=alt.value(4), y=y), *lines]
    chart = (
        alt.layer(*lines, data=alt.Data(values=values))
        .transform_calculate(bits=f"({bits}) / {sum(weights.values())}", kilobytes="datum.bytes / 1000", layers=told)
        .transform_joinaggregate(mean="mean(accuracy)", size="mean(kilobytes)", groupby=["budget"])
        .properties(height=280)
    )
    budgets = sorted({run["target"] for run in runs})
    said = [_front_words(budget, [run for run in runs if run["target"] == budget]) for budget in budgets]
    params = [slider("budget", "Budget (bits a weight)", 1, len(budgets), 1, 2)]
    return Live("front", chart, params, f"{said}[budget - 1]", """Accuracy against size in kilobytes: a small circle
        for each run, a line through the means of each budget, a dashed line for the float network. A slider marks a
        budget with a diamond.""")


def _front_words(budget: int, runs: Sequence[Mapping[str, Any]]) -> str:
    accuracies = [100 * run["accuracy"] for run in runs]
    planes = ", ".join(f"{name.split('.')[0]} {k}" for name, k in runs[0]["scheme"].items())
    spread = f"{min(accuracies):.1f} to {max(accuracies):.1f} %" if len(runs) > 1 else f"{accuracies[0]:.1f} %"
    return (f"Budget {budget}: {sum(run['bytes'] for run in runs) / len(runs):.0f} bytes, accuracy {spread} over "
            f"{len(runs)} seed{'s' * (len(runs) > 1)}. Planes with seed {runs[0]['seed']}: {planes}.")  # fmt: skip
