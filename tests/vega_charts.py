"""The charts of the book, and what Vega computes in them without a browser."""

from __future__ import annotations

import json
import re
from functools import cache
from html import unescape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("staircase", "one-weight", "straight-through", "gate", "pull", "histogram", "masks", "front")


@cache
def record():
    """The recorded runs that three of the charts show."""
    return json.loads((ROOT / "book/results/charts.json").read_text("utf8"))


@cache
def chart(name):
    return {chart.name: chart for chart in _all()}[name]


@cache
def _all():
    from csq_book import charts

    return [*(make() for make in charts.ALL), charts.histogram(record()), charts.masks(record()),
            charts.front(record())]  # fmt: skip


def vega_version():
    import altair

    return ".".join(altair.VEGALITE_VERSION.removeprefix("v").split(".")[:2])


def draw(spec):
    """The texts of the picture that Vega draws."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg(spec, vl_version=vega_version())
    return [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def evaluate(name, *fields, layer=None, data=None, **values):
    """Rows of numbers that Vega computes for these fields, with the parameters at these values."""
    spec = chart(name).at(**values)
    part = spec if layer is None else spec["layer"][layer]
    text = " + ' ' + ".join(f"toString(datum[{field!r}])" for field in fields)
    told = draw({
        "data": data or part["data"], "params": spec["params"], "mark": "text",
        "transform": [*part["transform"], {"calculate": text, "as": "told"}], "encoding": {"text": {"field": "told"}},
        "datasets": spec.get("datasets", {}),
    })  # fmt: skip
    return [tuple(map(float, row.split())) for row in told]


def signals(name, *names, **values):
    """What Vega computes for parameters; the sentence too."""
    told = draw({
        "data": {"values": [{}]}, "params": chart(name).at(**values)["params"], "mark": "text",
        "transform": [{"calculate": " + '|' + ".join(names), "as": "told"}],
        "encoding": {"text": {"field": "told"}}, "config": {"text": {"limit": 0}},
    })  # fmt: skip
    return told[0].split("|")
