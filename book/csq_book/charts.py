"""Charts that compute in the reader's browser: the method's formulas with sliders, and no kernel behind them.

Each function returns a :class:`Live` chart. On the built page it is a picture (for print, and for readers
without scripts) that a live Vega-Lite chart replaces; the site serves the scripts itself
(book/_ext/vega.py). In Colab and JupyterLab the notebook loads them from the network. The formulas stand in the
specifications as Vega expressions, which tests evaluate and hold against this library on a grid of values.

Needs altair; the pictures need vl-convert-python too.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from csq_mini.planes import LOGIT

BLUE, ORANGE, GREEN = "#0a7cc0", "#c97f00", "#029e73"
"""Each has a contrast of at least 3 to 1 with white and with the dark page."""

CONFIG: dict[str, Any] = {
    "aria": False,  # the box around the chart speaks for it
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {"labelColor": "currentColor", "titleColor": "currentColor", "titleFontWeight": "normal",
             "labelFontSize": 13, "titleFontSize": 14, "gridColor": "currentColor", "gridOpacity": 0.15,
             "domainColor": "currentColor", "tickColor": "currentColor"},
    "legend": {"labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 13, "orient": "top",
               "title": None, "symbolStrokeWidth": 2, "symbolSize": 150},
    "text": {"color": "currentColor", "fontSize": 13},
    "rule": {"color": "currentColor"},
}  # fmt: skip

STYLE = """\
.csq-chart { max-width: 40rem; margin: 0 auto; text-align: left; }
.csq-chart > img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
.csq-chart .csq-view, .csq-chart .csq-view .chart-wrapper { width: 100%; display: block; padding: 0; }
.csq-chart .csq-view svg { max-width: 100%; overflow: visible; }
.csq-live > img { display: none; }
.csq-chart .vega-bind label { display: grid; grid-template-columns: minmax(9rem, 15rem) 1fr 3.2rem; gap: 0 .7rem;
  align-items: center; margin: .2rem 0; font-size: .95rem; }
.csq-chart .vega-bind input { width: 100%; min-width: 0; height: 1.6rem; accent-color: #0a7cc0; }
.csq-chart .csq-words { margin: .4rem 0 0; font-size: .95rem; min-height: 3em; }
html[data-theme="dark"] .bd-content div.cell_output .text_html:has(div.csq-chart) {
  background: none !important; color: inherit; padding: 0; }
@media (max-width: 30rem) { .csq-chart .vega-bind label { grid-template-columns: 1fr 3.2rem; }
  .csq-chart .vega-bind-name { grid-column: 1 / -1; } }
@media print { .csq-chart > img { display: block; }
  .csq-chart .csq-view, .csq-chart .csq-words { display: none !important; } }
"""

SCRIPT = """\
window.csqDraw = async (box) => {
  if (box.dataset.drawn) return;
  box.dataset.drawn = "yes";
  const spec = JSON.parse(box.querySelector("script").textContent);
  const place = box.querySelector(".csq-view"), words = box.querySelector(".csq-words");
  const { view } = await vegaEmbed(place, spec, { mode: "vega-lite", renderer: "svg", actions: false });
  const svg = place.querySelector("svg");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", box.querySelector("img")?.alt ?? box.getAttribute("aria-label"));
  const say = () => { words.textContent = view.signal("words"); };
  view.addSignalListener("words", say);
  say();
  box.classList.add("csq-live");
  box.view = view;
  window.csqDrawn ??= performance.now();
};
"""

LOADER = """\
<!-- notebook --><style>STYLE</style><script>
SCRIPT(async () => {
  const amd = window.define?.amd;  // where RequireJS runs, the scripts would hide in it
  const load = (url) => new Promise((done, failed) => {
    const script = document.createElement("script");
    Object.assign(script, { src: "https://cdn.jsdelivr.net/npm/" + url, onload: done, onerror: failed, async: false });
    document.head.append(script);
  });
  if (amd) window.define.amd = undefined;
  window.csqVega ??= Promise.all([URLS].map(load));
  try { await window.csqVega; } catch { return; } finally { if (amd) window.define.amd = amd; }  // or the picture stays
  document.querySelectorAll(".csq-chart").forEach(csqDraw);
})();
</script><!-- /notebook -->"""


class Live:
    """A Vega-Lite chart with labelled sliders, a sentence that follows them, and a picture in its place.

    Attributes:
        name: of the chart, unique on a page.
        spec: the specification, whole.
        alt: what the picture shows, for who cannot see it.
    """

    def __init__(self, name: str, chart: Any, params: Sequence[dict[str, Any]], words: str, alt: str):
        self.name, self.alt = name, " ".join(alt.split())
        chart = chart.properties(width="container")
        self.spec: dict[str, Any] = chart.to_dict(validate=True) | {"config": CONFIG, "background": "transparent"}
        self.spec["params"] = [*params, {"name": "words", "expr": words}]
        self.spec.pop("$schema")

    def at(self, **values: Any) -> dict[str, Any]:
        """The specification with its parameters at other values."""
        unknown = values.keys() - {p["name"] for p in self.spec["params"] if "value" in p}
        if unknown:
            raise ValueError(f"{self.name} has no parameter {', '.join(sorted(unknown))}")
        params = [p | {"value": values[p["name"]]} if p["name"] in values else p for p in self.spec["params"]]
        return self.spec | {"params": params}

    def svg(self) -> str:
        """The picture at the values the sliders start with; needs vl-convert-python."""
        import vl_convert

        version = ".".join(alt.VEGALITE_VERSION.removeprefix("v").split(".")[:2])
        text = vl_convert.vegalite_to_svg(self.spec | {"width": 480, "background": "white"}, vl_version=version)
        start, end = text.index(' width="'), text.index(' viewBox="')
        width, height = (0.75 * float(side) for side in text[text.index('viewBox="0 0 ') + 13 :].split('"')[0].split())
        return f'{text[:start]} width="{width:g}pt" height="{height:g}pt"{text[end:]}'  # points, as our other pictures

    def html(self, picture: str | None = None) -> str:
        """The chart for a page that has the scripts, and, in a part that the book takes away, for one that has not."""
        words, parts = html.escape(self.alt, quote=True), []
        if picture:
            source = picture.replace("%", "%25").replace('"', "'").replace("#", "%23").replace("&", "%26")
            source = source.replace("<", "%3C").replace(">", "%3E").replace("\n", " ")
            parts.append(f'<img alt="{words}" src="data:image/svg+xml,{source}">')
        spec = json.dumps(self.spec, separators=(",", ":")).replace("</", "<\\/")
        names = {"vega": alt.VEGA_VERSION, "vega-lite": alt.VEGALITE_VERSION, "vega-embed": alt.VEGAEMBED_VERSION}
        urls = ", ".join(json.dumps(f"{name}@{version.removeprefix('v')}") for name, version in names.items())
        loader = LOADER.replace("STYLE", STYLE).replace("SCRIPT", SCRIPT).replace("URLS", urls)
        return (
            f'<div class="csq-chart" id="chart-{self.name}" role="group" aria-label="{words}">{"".join(parts)}'
            f'<div class="csq-view"></div><p class="csq-words" aria-live="polite"></p>'
            f'<script type="application/json">{spec}</script></div>{loader}'
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        try:
            picture = self.svg()
        except ImportError:  # as in Colab, where the live chart shows
            return {"text/html": self.html(), "text/plain": f"<chart {self.name}>"}
        return {"text/html": self.html(picture), "image/svg+xml": picture, "text/plain": f"<chart {self.name}>"}


# What the specifications are made of


def slider(name: str, label: str, low: float, high: float, step: float, value: float) -> dict[str, Any]:
    """A parameter with a control; the browser makes it a range input inside its label."""
    bind = {"input": "range", "min": low, "max": high, "step": step, "name": label}
    return {"name": name, "value": value, "bind": bind}


def even(u: str) -> str:
    """Vega expression that rounds, halves to even, as torch does."""
    return f"(({u}) - floor({u}) == 0.5 ? 2 * round(({u}) / 2) : round({u}))"


def sigmoid(x: str) -> str:
    """Vega expression of the sigmoid."""
    return f"1 / (1 + exp(-({x})))"


PROGRESS = slider("t", "Progress t (\u03b2 = 200\u1d57)", 0, 1, 0.01, 0.3)
BETA = {"name": "beta", "expr": "pow(200, t)"}
_COLORS = [BLUE, ORANGE, GREEN]


def _axis(title: str, **more: Any) -> Any:
    return alt.Axis(title=title, **{"tickCount": 5, **more})


# The charts


def staircase() -> Live:
    """Uniform quantizer: a weight against what it becomes, with ``bits`` (planes) and range s.

    As in :func:`csq_mini.bits.round_to_grid`: step = s / (2^k - 1), codes clamped to +-(2^k - 1).
    """
    data = alt.sequence(-2, 2.0001, 0.01, as_="w")
    code = f"clamp({even('datum.w / step')}, -levels, levels)"
    x = alt.X("w:Q", axis=_axis("weight w"), scale=alt.Scale(domain=[-2, 2], nice=False))
    y = alt.Y("quantized:Q", axis=_axis("rounded weight"), scale=alt.Scale(domain=[-2, 2], nice=False))
    line = alt.Chart().mark_line(color=BLUE, strokeWidth=2.5, interpolate="step").encode(x=x, y=y)
    same = alt.Chart().mark_line(color=ORANGE, strokeDash=[5, 4], strokeWidth=1.5).encode(x=x, y=alt.Y("w:Q"))
    chart = alt.layer(same, line, data=data).transform_calculate(code=code).transform_calculate(
        quantized="step * datum.code", error="datum.quantized - datum.w"
    ).properties(height=280)  # fmt: skip
    params = [slider("bits", "Bits k", 1, 8, 1, 2), slider("range", "Range s", 0.25, 2, 0.05, 1),
              {"name": "levels", "expr": "pow(2, bits) - 1"}, {"name": "step", "expr": "range / levels"}]  # fmt: skip
    words = (
        "'A step is ' + format(step, '.4f') + ', and there are ' + (2 * levels + 1) + ' values. A weight within '"
        " + '\u00b1' + format(range, '.2f') + ' moves by at most half a step, ' + format(step / 2, '.4f') + '.'"
    )
    return Live("staircase", chart, params, words, """A staircase around the dashed diagonal: each weight against its
        rounded value. Two sliders set the number of bits and the range; more bits make finer steps, and beyond the
        range the staircase is flat.""")


def one_weight() -> Live:
    """The bits of one weight: planes of both signs, the integer, the error, for s = 1 and N = 8.

    As in :func:`csq_mini.bits.round_to_grid` with the ``kept`` most significant planes, and
    :func:`csq_mini.bits.integer_to_planes`.
    """
    data = alt.sequence(0, 8, 1, as_="b")
    bit = "floor(abs(code) / pow(2, datum.b)) % 2"
    bare: dict[str, Any] = {"domain": False, "ticks": False, "labelAngle": 0}
    gap = alt.Scale(paddingInner=0.08)
    x = alt.X("worth:O", sort="descending", axis=alt.Axis(title="worth of the plane", **bare), scale=gap)
    y = alt.Y("sign:N", sort=["P", "N"], axis=alt.Axis(title=None, **bare), scale=gap)
    full = "datum.bit == 1 && datum.sign == 'P'"
    color: Any = [{"test": full, "value": BLUE}, {"test": "datum.bit == 1", "value": ORANGE}]
    opacity: Any = [{"test": "datum.bit == 1", "value": 1}, {"test": "datum.closed", "value": 0.06}]
    white: Any = {"test": "datum.bit == 1", "value": "white"}
    squares = alt.Chart().mark_rect(cornerRadius=4).encode(
        x=x, y=y, color=alt.ColorValue("currentColor", condition=color),
        opacity=alt.OpacityValue(0.2, condition=opacity))  # fmt: skip
    digits = alt.Chart().mark_text(fontSize=16).encode(
        x=x, y=y, text="shown:N", color=alt.ColorValue("currentColor", condition=white))  # fmt: skip
    chart = (
        alt.layer(squares, digits, data=data)
        .transform_calculate(worth="pow(2, datum.b)", sign="['P', 'N']", closed="datum.b < 8 - kept")
        .transform_flatten(["sign"])
        .transform_calculate(bit=f"(datum.sign == 'P' ? code > 0 : code < 0) ? {bit} : 0")
        .transform_calculate(shown="datum.closed ? '' : datum.bit")
        .properties(height=130)
    )
    params = [
        slider("w", "Weight w", -1, 1, 0.005, 0.35), slider("kept", "Planes kept", 1, 8, 1, 8),
        {"name": "unit", "expr": "pow(2, 8 - kept)"}, {"name": "most", "expr": "pow(2, kept) - 1"},
        {"name": "step", "expr": "1 / 255"}, {"name": "value", "expr": "step * code"},
        {"name": "code", "expr": f"unit * clamp({even('w / (step * unit)')}, -most, most)"},
    ]  # fmt: skip
    words = ("'w = ' + format(w, '.3f') + ' becomes the integer ' + format(code, 'd') + ', which stands for ' + "
             "format(value, '.4f') + ': an error of ' + format(value - w, '+.4f') + '.'")  # fmt: skip
    return Live("one-weight", chart, params, words, """Two rows of eight squares, the bits of the positive part P and
        of the negative part N of one weight, worth 128 down to 1. Squares with a 1 are coloured. One slider moves the
        weight, the other takes away the planes of least worth.""")


def straight_through() -> Live:
    """Rounding forward, a straight line backward: an activation of ``bits`` with clip alpha.

    As in :class:`csq_mini.activations.PACT` and its gradient; the true slope is zero wherever there is one.
    """
    data = alt.sequence(-1, 4.0001, 0.02, as_="x")
    x = alt.X("x:Q", axis=_axis("input x"), scale=alt.Scale(domain=[-1, 4], nice=False))
    scale = alt.Scale(domain=[-0.12, 3.2], nice=False)  # a line at zero stands off the axis
    names = ["forward, y", "backward, the slope it takes", "true slope"]
    chart = (
        alt.layer(
            alt.Chart().mark_line(strokeWidth=2.5, interpolate="step").encode(
                x=x, y=alt.Y("value:Q", axis=_axis("value, slope"), scale=scale),
                color=alt.Color("line:N", scale=alt.Scale(domain=names, range=_COLORS), legend=alt.Legend(
                    columns=1, symbolType="stroke", labelLimit=300)),
                strokeDash=alt.StrokeDash("line:N", scale=alt.Scale(domain=names, range=[[1, 0], [7, 4], [2, 3]]))),
            data=data,
        )
        .transform_calculate(code=even("clamp(datum.x / step, 0, levels)"))
        .transform_calculate(slope="datum.x > 0 && datum.x < alpha ? 1 : 0")
        .transform_calculate(forward="step * datum.code")
        .transform_calculate(line=json.dumps(names), value="[datum.forward, datum.slope, 0]")
        .transform_flatten(["line", "value"])
        .properties(height=240)
    )  # fmt: skip
    params = [slider("bits", "Bits k", 1, 4, 1, 2), slider("alpha", "Clip \u03b1", 0.5, 3, 0.1, 2),
              {"name": "levels", "expr": "pow(2, bits) - 1"}, {"name": "step", "expr": "alpha / levels"}]  # fmt: skip
    words = (
        "'Forward there are ' + pow(2, bits) + ' values, ' + format(step, '.3f') + ' apart. Backward the slope is 1 '"
        " + 'between 0 and ' + format(alpha, '.1f') + ', as if nothing had been rounded; in truth it is 0.'"
    )
    return Live("straight-through", chart, params, words, """A clipped staircase, the forward pass; a dashed line that
        is 1 between zero and the clip and 0 elsewhere, the slope taken backward; and a dotted line at zero, the true
        slope. Two sliders set the bits and the clip.""")


def gate() -> Live:
    """The gate sigmoid(beta x) and its slope, beta = 200^t as in :func:`csq_mini.temperature`."""
    data = alt.sequence(-2, 2.0001, 0.01, as_="x")
    x = alt.X("x:Q", axis=_axis("logit x"), scale=alt.Scale(domain=[-2, 2], nice=False))
    left = alt.Y("gate:Q", axis=_axis("gate f(x)", titleColor=BLUE), scale=alt.Scale(domain=[0, 1]))
    powers = _axis("slope f'(x)", titleColor=ORANGE, grid=False, values=[0.001, 0.01, 0.1, 1, 10, 100], format="~g")
    right = alt.Y("drawn:Q", axis=powers, scale=alt.Scale(type="log", domain=[0.001, 100]))
    start = alt.Chart(alt.Data(values=[{"x": -LOGIT}, {"x": LOGIT}])).mark_rule(strokeDash=[2, 3], opacity=0.6)
    chart = (
        alt.layer(
            alt.layer(start.encode(x=x), alt.Chart().mark_line(color=BLUE, strokeWidth=2.5).encode(x=x, y=left)),
            alt.Chart().mark_line(color=ORANGE, strokeWidth=2.5, strokeDash=[7, 4]).encode(x=x, y=right),
            data=data,
        )
        .transform_calculate(gate=sigmoid("beta * datum.x"))
        .transform_calculate(slope="beta * datum.gate * (1 - datum.gate)")
        .transform_calculate(drawn="datum.slope < 0.001 ? null : datum.slope")
        .resolve_scale(y="independent")
        .properties(height=260)
    )
    params = [PROGRESS, BETA, {"name": "opening", "expr": f"{sigmoid(f'beta * {LOGIT}')}"}]
    words = ("'\u03b2 = ' + format(beta, '.1f') + ': the steepest slope is ' + format(beta / 4, '.2f') + ', at 0. "
             "At x = 0.5, where an open bit starts, the gate is ' + format(opening, '.3f') + ' and its slope ' + "
             "format(beta * opening * (1 - opening), '.3g') + '.'")  # fmt: skip
    return Live("gate", chart, params, words, """The gate rises from 0 to 1 around logit 0; its slope, dashed, on a
        logarithmic axis, is a peak at 0. A slider raises the temperature: the gate becomes a step, and the slope a
        needle that vanishes at the logits plus and minus one half, which two dotted lines mark.""")


def histogram(record: Mapping[str, Any]) -> Live:
    """Bit gates of a recorded run, epoch by epoch: sigmoid(beta x) of its logits at 200 ranks, in 20 bins."""
    epochs = next(run["gates"] for run in record["runs"] if "gates" in run)
    values = [{"epoch": row["epoch"], "beta": row["beta"], "x": [round(x, 3) for x in row["logits"]]} for row in epochs]
    data = alt.Data(values=values)
    bars = alt.Chart().mark_rect(color=BLUE).encode(
        x=alt.X("bin:Q", axis=_axis("opening of the gate"), scale=alt.Scale(domain=[0, 1])), x2="end:Q",
        y=alt.Y("share:Q", axis=_axis("share of the gates", format="%"), scale=alt.Scale(domain=[0, 1])),
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
    """Masks of every layer over the epochs of a recorded run, for the budget a slider sets."""
    runs = [run for run in record["runs"] if "open" in run]
    layers, search = list(runs[0]["open"]), runs[0]["search_epochs"]
    values = [{"budget": run["target"], "layer": name, "open": numbers, "filled": run["filled"][name]}
              for run in runs for name, numbers in run["open"].items()]  # fmt: skip
    epochs = len(values[0]["open"])
    names = ["open", "filled at the freeze"]
    y = alt.Y("layer:N", sort=layers, axis=alt.Axis(title=None, domain=False, ticks=False, labelPadding=6),
              scale=alt.Scale(domain=layers, paddingInner=0.18, paddingOuter=0.05))  # fmt: skip
    x = alt.X("from:Q", axis=_axis("epoch", grid=False, tickCount=6), scale=alt.Scale(domain=[0, epochs], nice=False))
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
    """Accuracy against size of recorded runs to every budget, one marked; B is computed from each scheme."""
    runs = [run for run in record["runs"] if run["target"] is not None]
    floats = [100 * run["accuracy"] for run in record["runs"] if run["target"] is None]
    weights = runs[0]["weights"]
    bits = " + ".join(f"{n} * datum.planes[{i}]" for i, n in enumerate(weights.values()))
    values = [{"budget": run["target"], "seed": run["seed"], "accuracy": round(100 * run["accuracy"], 2),
               "bytes": run["bytes"], "planes": list(run["scheme"].values())} for run in runs]  # fmt: skip
    told = " + ', ' + ".join(f"'{name.split('.')[0]} ' + datum.planes[{i}]" for i, name in enumerate(weights))
    x = alt.X("kilobytes:Q", axis=_axis("size (kB)"), scale=alt.Scale(zero=False, padding=12))
    y = alt.Y("accuracy:Q", axis=_axis("accuracy (%)"), scale=alt.Scale(zero=False, padding=12))
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


def pull() -> Live:
    """What the budget's term does to one mask logit q, as the present precision B passes the target tau.

    Minus the gradient of :meth:`csq_mini.Budget.penalty` by q, with and without ``growth``:
    -lambda (B - tau) (|W_l| / |W|) beta f(q) (1 - f(q)).
    """
    data = alt.sequence(0, 8.0001, 0.05, as_="B")
    x = alt.X("B:Q", axis=_axis("present bits a weight, B", tickCount=8), scale=alt.Scale(domain=[0, 8], nice=False))
    y = alt.Y("value:Q", axis=_axis("pull on the mask logit q"), scale=alt.Scale(zero=True))
    names = ["CSQ: changes its sign", "prunes only"]
    lines = alt.Chart().mark_line(strokeWidth=2.5).encode(
        x=x, y=y, color=alt.Color("line:N", scale=alt.Scale(domain=names, range=[BLUE, ORANGE]), legend=alt.Legend(
            columns=1, symbolType="stroke", labelLimit=300)),
        strokeDash=alt.StrokeDash("line:N", scale=alt.Scale(domain=names, range=[[1, 0], [7, 4]])))  # fmt: skip
    at_target = alt.Chart(alt.Data(values=[{}])).transform_calculate(B="tau").mark_rule(strokeDash=[2, 3]).encode(x=x)
    zero = alt.Chart(alt.Data(values=[{"value": 0}])).mark_rule(opacity=0.5).encode(y=y)
    chart = (
        alt.layer(at_target, zero, lines, data=data)
        .transform_calculate(pull="-strength * (datum.B - tau) * share * slope")
        .transform_calculate(bare="min(datum.pull, 0)")
        .transform_calculate(line=json.dumps(names), value="[datum.pull, datum.bare]")
        .transform_flatten(["line", "value"])
        .properties(height=240)
    )
    params = [
        slider("tau", "Target \u03c4", 1, 6, 0.5, 3), slider("q", "Mask logit q", -1, 1, 0.05, 0.5), PROGRESS, BETA,
        {"name": "strength", "value": 0.2}, {"name": "share", "value": 0.31},
        {"name": "opening", "expr": sigmoid("beta * q")},
        {"name": "slope", "expr": "beta * opening * (1 - opening)"},
    ]  # fmt: skip
    words = (
        "'\u03b2 = ' + format(beta, '.1f') + ': the gate of q is ' + format(opening, '.3f') + '. At B = 8 the pull '"
        " + 'is ' + format(-strength * (8 - tau) * share * slope, '.2~g') + ', at B = ' + tau + ' it is 0, and at '"
        " + 'B = 0 it is ' + format(strength * tau * share * slope, '.2~g') + '.'"
    )
    return Live("pull", chart, params, words, """The pull of the budget's term on a mask logit against the present
        precision: a falling straight line that passes zero at the target, above it closes planes and below it opens
        them. A dashed second line without growth stays at zero below the target. Sliders set target, logit and
        temperature.""")


ALL = (staircase, one_weight, straight_through, gate, pull)
"""The charts that need no recorded run; :func:`histogram`, :func:`masks` and :func:`front` take one."""
