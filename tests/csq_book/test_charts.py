"""The charts compute what the library computes: each formula, both ways, on a grid of values.

Vega evaluates the expressions of a specification without a browser (vl-convert runs it);
test_charts_in_a_browser.py moves their sliders.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html import unescape
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn
from vega_charts import NAMES, chart, evaluate, record, signals

import csq_mini as csq
from csq_mini.activations import Levels
from csq_mini.bits import integer_to_planes, planes_to_integer, round_to_grid

# Not importorskip, here and in other tests: what takes seconds to import shall not be imported at collection.
pytestmark = pytest.mark.skipif(not (find_spec("vl_convert") and find_spec("altair")), reason="needs the extra book")

ROOT = Path(__file__).resolve().parents[2]
every_chart = pytest.mark.parametrize("name", NAMES)


def columns(rows):
    return (torch.tensor(column, dtype=torch.float64) for column in zip(*rows))


# The formulas


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("scale", [0.25, 1.0, 1.7])
def test_staircase(bits, scale):
    w, quantized = columns(evaluate("staircase", "w", "quantized", bits=bits, range=scale))
    step = torch.tensor(scale, dtype=torch.float64) / (2**bits - 1)
    assert len(w) == 401 and torch.equal(quantized, step * round_to_grid(w, step, 0, bits))
    inside = w.abs() <= scale
    assert ((quantized - w).abs()[inside] <= step / 2 + 1e-12).all()


@pytest.mark.parametrize("kept", [1, 2, 5, 8])
@pytest.mark.parametrize("w", [-1.0, -0.755, -0.3, -0.005, 0.0, 0.1, 0.3, 0.35, 0.5, 0.995, 1.0])
def test_one_weight(w, kept):
    code, value = map(float, signals("one-weight", "code", "value", w=w, kept=kept))
    step = torch.tensor(1 / 255, dtype=torch.float64)
    expected = round_to_grid(torch.tensor([w], dtype=torch.float64), step, 8 - kept, 8)
    assert code == int(expected) and value == float(step * expected)
    rows = evaluate("one-weight", "b", "bit", w=w, kept=kept)
    positive, negative = (torch.tensor([bit for _, bit in rows[i::2]]).view(-1, 1) for i in (0, 1))
    assert [b for b, _ in rows[::2]] == list(range(8))
    assert int(planes_to_integer(positive, negative)) == int(expected)
    for shown, planes in zip((positive, negative), integer_to_planes(expected, 8)):
        assert torch.equal(shown == 1, planes)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("alpha", [0.5, 1.3, 2.0, 3.0])
def test_straight_through(bits, alpha):
    rows = evaluate("straight-through", "x", "forward", "slope", "value", bits=bits, alpha=alpha)
    x, forward, slope, _ = columns(rows[::3])
    x.requires_grad_()
    y = Levels.apply(x, torch.tensor(alpha, dtype=torch.float64), 2**bits - 1)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert len(x) == 251 and torch.equal(forward, y.detach()) and torch.equal(slope, gradient)
    drawn = [row[3] for row in rows]
    assert drawn[::3] == forward.tolist() and drawn[1::3] == slope.tolist() and set(drawn[2::3]) == {0}


@pytest.mark.parametrize("t", [0.0, 0.13, 0.3, 0.5, 0.77, 1.0])
def test_gate_and_slope(t):
    x, opening, slope = columns(evaluate("gate", "x", "gate", "slope", t=t))
    beta = csq.temperature(t)
    x.requires_grad_()
    expected = csq.gate(x, beta)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    assert torch.allclose(opening, expected.detach(), rtol=1e-9, atol=1e-14)
    assert torch.allclose(slope, gradient, rtol=1e-6, atol=1e-9)
    assert float(signals("gate", "beta", t=t)[0]) == pytest.approx(beta, rel=1e-12)


@pytest.mark.parametrize("epoch", [1, 2, 6, 15, 16, 30])
def test_histogram_of_gates(epoch):
    recorded = next(run["gates"] for run in record()["runs"] if "gates" in run)[epoch - 1]
    logits = torch.tensor([round(x, 3) for x in recorded["logits"]], dtype=torch.float64)
    gates = csq.gate(logits, recorded["beta"])
    expected = torch.zeros(20, dtype=torch.float64)
    for k in (gates * 20).floor().clamp(max=19).int().tolist():
        expected[k] += 1 / len(gates)
    shown = torch.zeros(20, dtype=torch.float64)
    for left, share in evaluate("histogram", "bin", "share", epoch=epoch):
        shown[round(left * 20)] = share
    assert torch.allclose(shown, expected, atol=1e-12)
    assert f"{recorded['beta']:.1f}" in signals("histogram", "words", epoch=epoch)[0]


def test_recorded_temperatures_are_the_schedule():
    gates = next(run["gates"] for run in record()["runs"] if "gates" in run)
    recipe = csq.recipes.get("digits", target=2)
    steps = len(csq.data.digits().train[0]) // recipe.batch_size
    for row in gates:
        search = row["phase"] == "search"
        epochs = recipe.search_epochs if search else recipe.finetune_epochs
        done = (row["epoch"] - (0 if search else recipe.search_epochs)) * steps
        assert row["beta"] == pytest.approx(csq.temperature((done - 1) / (epochs * steps)), rel=1e-5)


@pytest.mark.parametrize("budget", range(1, 7))
def test_masks(budget):
    (run,) = (run for run in record()["runs"] if run["target"] == budget and "open" in run)
    rows = evaluate("masks", "epoch", "plane", "open", layer=1, budget=budget)
    expected = [(epoch, plane, number) for numbers in run["open"].values() for epoch, number in enumerate(numbers, 1)
                for plane in range(8) if number >> plane & 1]  # fmt: skip
    assert sorted(rows) == sorted(expected)
    total = sum(run["weights"].values())
    last = {name: bin(numbers[-1]).count("1") for name, numbers in run["open"].items()}
    assert last == run["scheme"]
    assert run["bits"] == pytest.approx(sum(run["weights"][n] * k for n, k in last.items()) / total)
    assert run["bits"] <= budget
    assert all(filled & ~run["open"][name][-1] == 0 for name, filled in run["filled"].items())
    assert f"{run['bits']:.2f} bits" in signals("masks", "words", budget=budget)[0]


def test_front():
    runs = [run for run in record()["runs"] if run["target"] is not None]
    rows = evaluate("front", "budget", "seed", "accuracy", "kilobytes", "bits", "mean", "size")
    assert len(rows) == len(runs) == 18
    for budget, seed, accuracy, kilobytes, bits, mean, size in rows:
        same = [run for run in runs if run["target"] == budget]
        (run,) = (run for run in same if run["seed"] == seed)
        assert (accuracy, kilobytes) == (pytest.approx(100 * run["accuracy"], abs=0.006), run["bytes"] / 1000)
        assert bits == pytest.approx(run["bits"], rel=1e-12)
        assert mean == pytest.approx(sum(100 * r["accuracy"] for r in same) / 3, abs=0.006)
        assert size == pytest.approx(sum(r["bytes"] for r in same) / 3000)


def test_the_recorded_sizes_are_those_of_the_library():
    run = next(run for run in record()["runs"] if run["target"] == 2)
    model = csq.models.digits_cnn()
    csq.convert(model)
    assert run["weights"] == {row.name: row.weights for row in csq.report(model).rows}
    assert {(run["target"], run["seed"]) for run in record()["runs"]} == {
        (target, seed) for target in (*range(1, 7), None) for seed in range(3)}  # fmt: skip


@pytest.mark.parametrize("growth", [True, False], ids=["with growth", "without"])
@pytest.mark.parametrize("tau, t, q", [(3, 0.0, 0.5), (2.5, 0.3, -0.4), (4, 0.6, 0.05), (6, 1.0, 0.0)])
@pytest.mark.parametrize("kept", [0, 3, 6])
def test_pull(tau, t, q, growth, kept):
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10))
    csq.convert(model, masks="free")
    beta = csq.temperature(t)
    csq.set_temperature(model, beta)
    budget = csq.Budget(model, target=tau, strength=0.7, growth=growth)
    first, second = budget.layers.values()
    with torch.no_grad():
        for layer in (first, second):
            layer.q.fill_(-1)
            layer.q[7] = 2  # the floor's plane
            layer.q[1 : 1 + kept] = 1
        first.q[0] = q
    budget.penalty().backward()
    share = 192 / 312
    ours = evaluate("pull", "pull", "bare", data={"values": [{"B": budget.bits()}]}, tau=tau, q=q, t=t,
                    strength=0.7, share=share)[0]  # fmt: skip
    assert -float(first.q.grad[0]) == pytest.approx(ours[0 if growth else 1], rel=2e-4, abs=1e-7)


def test_the_pull_has_the_default_strength_and_passes_zero_at_the_target():
    (strength,) = (p["value"] for p in chart("pull").spec["params"] if p["name"] == "strength")
    assert strength == csq.Recipe().strength
    rows = evaluate("pull", "B", "pull", "bare", tau=4)
    assert all((pull > 0) == (b < 4) and bare <= 0 for b, pull, bare in rows if abs(b - 4) > 1e-6)


# The specifications, and what a page gets


@every_chart
def test_a_chart_has_words_labels_and_no_address(name):
    import altair

    spec = chart(name).spec
    assert altair.Chart.from_dict(spec, validate=True) is not None
    assert "http" not in json.dumps(spec) and len(json.dumps(spec)) < 60_000
    controls = [p for p in spec["params"] if "bind" in p]
    assert controls and all(p["bind"]["input"] == "range" and len(p["bind"]["name"]) > 4 for p in controls)
    assert all(p["bind"]["min"] <= p["value"] <= p["bind"]["max"] for p in controls)
    assert len(chart(name).alt) > 80 and signals(name, "words")[0].endswith((".", "%"))
    with pytest.raises(ValueError, match="no parameter colour"):
        chart(name).at(colour=1)


@every_chart
def test_the_end_of_every_slider_gives_numbers(name):
    for p in chart(name).spec["params"]:
        for end in ("min", "max") if "bind" in p else ():
            words = signals(name, "words", **{p["name"]: p["bind"][end]})[0]
            assert words and not re.search("NaN|undefined|Infinity|null", words)


@every_chart
def test_the_picture_is_small_whole_and_on_a_light_ground(name):
    picture = chart(name).svg()
    root = ElementTree.fromstring(picture)
    assert root.get("width").endswith("pt") and root.get("viewBox") and len(picture) < 80_000
    assert 'fill="white"' in picture and picture == chart(name).svg()
    image = re.search(r'<img alt="([^"]*)" src="data:image/svg\+xml,([^"]*)">', chart(name).html(picture))
    assert unescape(image[1]) == chart(name).alt and not re.search("[<>#]", image[2])


def test_what_a_notebook_gets(monkeypatch):
    import altair

    bundle = chart("gate")._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/svg+xml", "text/plain"}
    assert f"vega-lite@{altair.VEGALITE_VERSION.removeprefix('v')}" in bundle["text/html"]
    monkeypatch.setitem(sys.modules, "vl_convert", None)  # as in Colab
    bundle = chart("gate")._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"} and "<img" not in bundle["text/html"]


def test_the_library_alone_needs_no_altair():
    code = "import sys, csq_mini; assert 'altair' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
