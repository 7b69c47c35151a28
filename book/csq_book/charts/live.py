"""A chart that computes in the reader's browser, with a picture in its place where no script runs."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

import altair as alt

from csq_mini.plots import BLUE

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
.csq-chart .vega-bind input { width: 100%; min-width: 0; height: 1.6rem; accent-color: BLUE; }
.csq-chart .csq-words { margin: .4rem 0 0; font-size: .95rem; min-height: 3em; }
html[data-theme="dark"] .bd-content div.cell_output .text_html:has(div.csq-chart) {
  background: none !important; color: inherit; padding: 0; }
@media (max-width: 30rem) { .csq-chart .vega-bind label { grid-template-columns: 1fr 3.2rem; }
  .csq-chart .vega-bind-name { grid-column: 1 / -1; } }
@media print { .csq-chart > img { display: block; }
  .csq-chart .csq-view, .csq-chart .csq-words { display: none !important; } }
""".replace("BLUE", BLUE)

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
    """A Vega-Lite chart with labelled sliders and a sentence that follows them, or else a picture.

    Attributes:
        name: unique on its page.
        spec: the whole Vega-Lite specification.
        alt: what the picture shows, for readers who cannot see it.
    """

    def __init__(self, name: str, chart: Any, params: Sequence[dict[str, Any]], words: str, alt: str):
        self.name, self.alt = name, " ".join(alt.split())
        chart = chart.properties(width="container")
        self.spec: dict[str, Any] = chart.to_dict(validate=True) | {"config": CONFIG, "background": "transparent"}
        self.spec["params"] = [*params, {"name": "words", "expr": words}]
        self.spec.pop("$schema")

    def at(self, **values: Any) -> dict[str, Any]:
        """The specification with other values for its parameters."""
        unknown = values.keys() - {p["name"] for p in self.spec["params"] if "value" in p}
        if unknown:
            raise ValueError(f"{self.name} has no parameter {', '.join(sorted(unknown))}")
        params = [p | {"value": values[p["name"]]} if p["name"] in values else p for p in self.spec["params"]]
        return self.spec | {"params": params}

    def svg(self) -> str:
        """The picture, with every slider where it starts; needs vl-convert-python."""
        import vl_convert

        version = ".".join(alt.VEGALITE_VERSION.removeprefix("v").split(".")[:2])
        text = vl_convert.vegalite_to_svg(self.spec | {"width": 480, "background": "white"}, vl_version=version)
        start, end = text.index(' width="'), text.index(' viewBox="')
        width, height = (0.75 * float(side) for side in text[text.index('viewBox="0 0 ') + 13 :].split('"')[0].split())
        # in points, like our other pictures
        return f'{text[:start]} width="{width:g}pt" height="{height:g}pt"{text[end:]}'

    def html(self, picture: str | None = None) -> str:
        """The chart as HTML; the part marked for notebooks loads the scripts that the book's site serves itself."""
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


def slider(name: str, label: str, low: float, high: float, step: float, value: float) -> dict[str, Any]:
    """A parameter with a slider: the browser shows a range input with a label."""
    bind = {"input": "range", "min": low, "max": high, "step": step, "name": label}
    return {"name": name, "value": value, "bind": bind}


def even(u: str) -> str:
    """Vega expression that rounds half to even, as torch does."""
    return f"(({u}) - floor({u}) == 0.5 ? 2 * round(({u}) / 2) : round({u}))"


def sigmoid(x: str) -> str:
    """Vega expression for the sigmoid."""
    return f"1 / (1 + exp(-({x})))"


def axis(title: str, **more: Any) -> Any:
    """An axis with about five ticks."""
    return alt.Axis(title=title, **{"tickCount": 5, **more})
