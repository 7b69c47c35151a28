"""The charts of the book compute what the library computes: each formula, both ways, on a grid of values.

Vega evaluates the expressions of a specification without a browser (vl-convert runs it); the tests of the
last part read them, and move the sliders, in a headless Chromium.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import csq_mini as csq
from csq_mini.activations import Levels
from csq_mini.bits import integer_to_planes, planes_to_integer, round_to_grid

vl_convert = pytest.importorskip("vl_convert", reason='needs pip install -e ".[book]"')
alt = pytest.importorskip("altair", reason='needs pip install -e ".[book]"')
from csq_mini import charts  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
RECORD = json.loads((ROOT / "book/results/charts.json").read_text("utf8"))
CHARTS = {chart.name: chart for chart in (*(make() for make in charts.ALL), charts.histogram(RECORD),
                                          charts.masks(RECORD), charts.front(RECORD))}  # fmt: skip
VERSION = ".".join(alt.VEGALITE_VERSION.removeprefix("v").split(".")[:2])
every_chart = pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)


def evaluate(chart, *fields, layer=None, data=None, **values):
    """Rows of numbers that Vega computes for these fields, with the parameters at these values."""
    spec = chart.at(**values)
    part = spec if layer is None else spec["layer"][layer]
    text = " + ' ' + ".join(f"toString(datum[{name!r}])" for name in fields)
    table = {
        "data": data or part["data"], "params": spec["params"], "mark": "text",
        "transform": [*part["transform"], {"calculate": text, "as": "told"}], "encoding": {"text": {"field": "told"}},
        "datasets": spec.get("datasets", {}),
    }  # fmt: skip
    svg = vl_convert.vegalite_to_svg(table, vl_version=VERSION)
    return [tuple(map(float, row.split())) for row in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def signals(chart, *names, **values):
    """What Vega computes for parameters; the sentence too."""
    spec = {"data": {"values": [{}]}, "params": chart.at(**values)["params"], "mark": "text",
            "transform": [{"calculate": " + '|' + ".join(names), "as": "told"}],
            "encoding": {"text": {"field": "told"}}, "config": {"text": {"limit": 0}}}  # fmt: skip
    svg = vl_convert.vegalite_to_svg(spec, vl_version=VERSION)
    return unescape(re.search(r"<text[^>]*>([^<]*)</text>", svg)[1]).split("|")


def columns(rows):
    return (torch.tensor(column, dtype=torch.float64) for column in zip(*rows))


# The formulas


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("scale", [0.25, 1.0, 1.7])
def test_staircase(bits, scale):
    w, quantized = columns(evaluate(CHARTS["staircase"], "w", "quantized", bits=bits, range=scale))
    step = torch.tensor(scale, dtype=torch.float64) / (2**bits - 1)
    assert len(w) == 401 and torch.equal(quantized, step * round_to_grid(w, step, 0, bits))
    inside = w.abs() <= scale
    assert ((quantized - w).abs()[inside] <= step / 2 + 1e-12).all()


@pytest.mark.parametrize("kept", [1, 2, 5, 8])
@pytest.mark.parametrize("w", [-1.0, -0.755, -0.3, -0.005, 0.0, 0.1, 0.3, 0.35, 0.5, 0.995, 1.0])
def test_one_weight(w, kept):
    code, value = map(float, signals(CHARTS["one-weight"], "code", "value", w=w, kept=kept))
    step = torch.tensor(1 / 255, dtype=torch.float64)
    expected = round_to_grid(torch.tensor([w], dtype=torch.float64), step, 8 - kept, 8)
    assert code == int(expected) and value == float(step * expected)
    spec = CHARTS["one-weight"]
    rows = evaluate(spec, "b", "bit", w=w, kept=kept)
    positive, negative = (torch.tensor([bit for _, bit in rows[i::2]]).view(-1, 1) for i in (0, 1))
    assert [b for b, _ in rows[::2]] == list(range(8))
    assert int(planes_to_integer(positive, negative)) == int(expected)
    for shown, planes in zip((positive, negative), integer_to_planes(expected, 8)):
        assert torch.equal(shown == 1, planes)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("alpha", [0.5, 1.3, 2.0, 3.0])
def test_straight_through(bits, alpha):
    rows = evaluate(CHARTS["straight-through"], "x", "forward", "slope", "value", bits=bits, alpha=alpha)
    x, forward, slope, _ = columns(rows[::3])
    x.requires_grad_()
    y = Levels.apply(x, torch.tensor(alpha, dtype=torch.float64), 2**bits - 1)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert len(x) == 251 and torch.equal(forward, y.detach()) and torch.equal(slope, gradient)
    drawn = [row[3] for row in rows]
    assert drawn[::3] == forward.tolist() and drawn[1::3] == slope.tolist() and set(drawn[2::3]) == {0}


@pytest.mark.parametrize("t", [0.0, 0.13, 0.3, 0.5, 0.77, 1.0])
def test_gate_and_slope(t):
    x, opening, slope = columns(evaluate(CHARTS["gate"], "x", "gate", "slope", t=t))
    beta = csq.temperature(t)
    x.requires_grad_()
    expected = csq.gate(x, beta)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    assert torch.allclose(opening, expected.detach(), rtol=1e-9, atol=1e-14)
    assert torch.allclose(slope, gradient, rtol=1e-6, atol=1e-9)
    assert float(signals(CHARTS["gate"], "beta", t=t)[0]) == pytest.approx(beta, rel=1e-12)


@pytest.mark.parametrize("epoch", [1, 2, 6, 15, 16, 30])
def test_histogram_of_gates(epoch):
    recorded = next(run["gates"] for run in RECORD["runs"] if "gates" in run)[epoch - 1]
    logits = torch.tensor([round(x, 3) for x in recorded["logits"]], dtype=torch.float64)
    gates = csq.gate(logits, recorded["beta"])
    expected = torch.zeros(20, dtype=torch.float64)
    for k in (gates * 20).floor().clamp(max=19).int().tolist():
        expected[k] += 1 / len(gates)
    shown = torch.zeros(20, dtype=torch.float64)
    for left, share in evaluate(CHARTS["histogram"], "bin", "share", epoch=epoch):
        shown[round(left * 20)] = share
    assert torch.allclose(shown, expected, atol=1e-12)
    assert f"{recorded['beta']:.1f}" in signals(CHARTS["histogram"], "words", epoch=epoch)[0]


def test_recorded_temperatures_are_the_schedule():
    gates = next(run["gates"] for run in RECORD["runs"] if "gates" in run)
    recipe = csq.recipes.get("digits", target=2)
    steps = len(csq.data.digits().train[0]) // recipe.batch_size
    for row in gates:
        search = row["phase"] == "search"
        epochs = recipe.search_epochs if search else recipe.finetune_epochs
        done = (row["epoch"] - (0 if search else recipe.search_epochs)) * steps
        assert row["beta"] == pytest.approx(csq.temperature((done - 1) / (epochs * steps)), rel=1e-5)


@pytest.mark.parametrize("budget", range(1, 7))
def test_masks(budget):
    (run,) = (run for run in RECORD["runs"] if run["target"] == budget and "open" in run)
    rows = evaluate(CHARTS["masks"], "epoch", "plane", "open", layer=1, budget=budget)
    expected = [(epoch, plane, number) for numbers in run["open"].values() for epoch, number in enumerate(numbers, 1)
                for plane in range(8) if number >> plane & 1]  # fmt: skip
    assert sorted(rows) == sorted(expected)
    total = sum(run["weights"].values())
    last = {name: bin(numbers[-1]).count("1") for name, numbers in run["open"].items()}
    assert last == run["scheme"]
    assert run["bits"] == pytest.approx(sum(run["weights"][n] * k for n, k in last.items()) / total)
    assert run["bits"] <= budget
    assert all(filled & ~run["open"][name][-1] == 0 for name, filled in run["filled"].items())
    assert f"{run['bits']:.2f} bits" in signals(CHARTS["masks"], "words", budget=budget)[0]


def test_front():
    runs = [run for run in RECORD["runs"] if run["target"] is not None]
    rows = evaluate(CHARTS["front"], "budget", "seed", "accuracy", "kilobytes", "bits", "mean", "size")
    assert len(rows) == len(runs) == 18
    for budget, seed, accuracy, kilobytes, bits, mean, size in rows:
        same = [run for run in runs if run["target"] == budget]
        (run,) = (run for run in same if run["seed"] == seed)
        assert (accuracy, kilobytes) == (pytest.approx(100 * run["accuracy"], abs=0.006), run["bytes"] / 1000)
        assert bits == pytest.approx(run["bits"], rel=1e-12)
        assert mean == pytest.approx(sum(100 * r["accuracy"] for r in same) / 3, abs=0.006)
        assert size == pytest.approx(sum(r["bytes"] for r in same) / 3000)


def test_the_recorded_sizes_are_those_of_the_library():
    run = next(run for run in RECORD["runs"] if run["target"] == 2)
    model = csq.models.digits_cnn()
    csq.convert(model)
    assert run["weights"] == {row.name: row.weights for row in csq.report(model).rows}
    assert {(run["target"], run["seed"]) for run in RECORD["runs"]} == {
        (target, seed) for target in (*range(1, 7), None) for seed in range(3)}  # fmt: skip


def test_a_recorded_run_is_the_run_of_fit(tmp_path):
    sys.path.insert(0, str(ROOT / "book/_ext"))
    import record

    recipe = csq.recipes.get("digits", target=2, search_epochs=1, finetune_epochs=1)
    model, data = csq.models.digits_cnn(), csq.data.digits()
    ours = record.Recorded(model, data, recipe)
    result, expected = ours.train(), csq.fit(model, data, recipe, device="cpu", progress=False)
    assert result.accuracy == expected.accuracy and list(result.history["hard"]) == list(expected.history["hard"])
    for epoch, row in zip(ours.epochs, expected.history.to_dict("records")):
        assert epoch["beta"] == row["beta"] and len(epoch["logits"]) == record.QUANTILES
        assert {name: bin(planes).count("1") for name, planes in epoch["open"].items()} == {
            name.removeprefix("bits/"): bits for name, bits in row.items() if name.startswith("bits/")}  # fmt: skip
    record.write(tmp_path / "charts.json", RECORD["runs"])
    assert json.loads((tmp_path / "charts.json").read_text("utf8")) == RECORD


@pytest.mark.parametrize("growth", [True, False], ids=["with growth", "without"])
@pytest.mark.parametrize("tau, t, q", [(3, 0.0, 0.5), (2.5, 0.3, -0.4), (4, 0.6, 0.05), (6, 1.0, 0.0)])
@pytest.mark.parametrize("kept", [0, 3, 6])
def test_pull(tau, t, q, growth, kept):
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10))
    csq.convert(model)
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
    ours = evaluate(CHARTS["pull"], "pull", "bare", data={"values": [{"B": budget.bits()}]}, tau=tau, q=q, t=t,
                    strength=0.7, share=share)[0]  # fmt: skip
    assert -float(first.q.grad[0]) == pytest.approx(ours[0 if growth else 1], rel=2e-4, abs=1e-7)


def test_the_pull_has_the_default_strength_and_passes_zero_at_the_target():
    (strength,) = (p["value"] for p in CHARTS["pull"].spec["params"] if p["name"] == "strength")
    assert strength == csq.Recipe().strength
    rows = evaluate(CHARTS["pull"], "B", "pull", "bare", tau=4)
    assert all((pull > 0) == (b < 4) and bare <= 0 for b, pull, bare in rows if abs(b - 4) > 1e-6)


# The specifications, and what a page gets


@every_chart
def test_a_chart_has_words_labels_and_no_address(chart):
    assert alt.Chart.from_dict(chart.spec, validate=True) is not None
    assert "http" not in json.dumps(chart.spec) and len(json.dumps(chart.spec)) < 60_000
    controls = [p for p in chart.spec["params"] if "bind" in p]
    assert controls and all(p["bind"]["input"] == "range" and len(p["bind"]["name"]) > 4 for p in controls)
    assert all(p["bind"]["min"] <= p["value"] <= p["bind"]["max"] for p in controls)
    assert len(chart.alt) > 80 and signals(chart, "words")[0].endswith((".", "%"))
    with pytest.raises(ValueError, match="no parameter colour"):
        chart.at(colour=1)


@every_chart
def test_the_end_of_every_slider_gives_numbers(chart):
    for p in chart.spec["params"]:
        for end in ("min", "max") if "bind" in p else ():
            words = signals(chart, "words", **{p["name"]: p["bind"][end]})[0]
            assert words and not re.search("NaN|undefined|Infinity|null", words)


@every_chart
def test_the_picture_is_small_whole_and_on_a_light_ground(chart):
    picture = chart.svg()
    root = ElementTree.fromstring(picture)
    assert root.get("width").endswith("pt") and root.get("viewBox") and len(picture) < 70_000
    assert 'fill="white"' in picture and picture == chart.svg()
    image = re.search(r'<img alt="([^"]*)" src="data:image/svg\+xml,([^"]*)">', chart.html(picture))
    assert unescape(image[1]) == chart.alt and not re.search("[<>#]", image[2])


def test_what_a_notebook_gets(monkeypatch):
    chart = CHARTS["gate"]
    bundle = chart._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/svg+xml", "text/plain"}
    assert f"vega-lite@{alt.VEGALITE_VERSION.removeprefix('v')}" in bundle["text/html"]
    monkeypatch.setitem(sys.modules, "vl_convert", None)  # as in Colab
    bundle = chart._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"} and "<img" not in bundle["text/html"]


def test_the_library_alone_needs_no_altair():
    code = "import sys, csq_mini; assert 'altair' not in sys.modules; csq_book.charts; assert 'altair' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# A site with charts


class Loads(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.scripts, self.inline, self.styles, self.open = [], "", [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.open = tag == "script" and "src" not in attrs
        if tag == "script" and "src" in attrs:
            self.scripts.append(attrs)
        if tag == "link" and attrs.get("rel") == "stylesheet":
            self.styles.append(attrs["href"])

    def handle_data(self, data):
        self.inline += data if self.open else ""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Two pages, one with all charts, built with the book's extension."""
    sphinx = pytest.importorskip("sphinx.application", reason='needs pip install -e ".[book]"')
    folder = tmp_path_factory.mktemp("site")
    (folder / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'book/_ext')!r})\nextensions = ['vega']\n"
        "html_theme = 'basic'\n"
    )
    body = "".join(
        f"\n{chart.name}\n{'-' * 40}\n\n.. raw:: html\n\n   "
        + chart.html(chart.svg()).replace("\n", "\n   ") + "\n" for chart in CHARTS.values()
    )  # fmt: skip
    (folder / "index.rst").write_text("Plain\n=====\n\n.. toctree::\n\n   charts\n", "utf8")
    # Sphinx's own theme wants 360 pixels beside its margin.
    narrow = "\n.. raw:: html\n\n   <style>div.body { min-width: 0; }</style>\n"
    (folder / "charts.rst").write_text("Charts\n======\n" + narrow + body, "utf8")
    out = folder / "out"
    app = sphinx.Sphinx(folder, folder, out, folder / "tree", "html", status=None, warningiserror=True)
    app.build()
    return out


def test_scripts_are_the_sites_own_deferred_and_only_where_charts_are(site):
    page, plain = (Loads((site / name).read_text("utf8")) for name in ("charts.html", "index.html"))
    ours = [script for script in page.scripts if "charts/" in script["src"]]
    assert [Path(s["src"].split("?")[0]).name for s in ours] == ["vega.js", "charts.js"]
    assert all("defer" in script for script in ours)
    assert any("charts/charts.css" in style for style in page.styles)
    assert not any("charts" in str(thing) for thing in (*plain.scripts, *plain.styles))
    for script in ours:
        assert (site / script["src"].split("?")[0]).exists()
    assert "http" not in page.inline and "import(" not in page.inline
    assert page.inline.count('"params"') == 8


def test_page_weight(site):
    ours = [site / "charts.html", *(site / "_static/charts" / name for name in ("charts.js", "charts.css"))]
    assert sum(file.stat().st_size for file in ours) < 400_000
    assert (site / "_static/charts/vega.js").stat().st_size < 1_000_000


# In a browser


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright, and a Chromium")
    with api.sync_playwright() as play:
        place = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        try:
            chromium = play.chromium.launch(executable_path=place)
        except api.Error:
            pytest.skip("no Chromium: run playwright install chromium, or install the system's")
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser):
    """Opens a page from its folder; whatever asks for the network, or complains, is noted."""
    contexts = []

    def open_page(file, width=1280, scripts=True, dark=False):
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": 900}, java_script_enabled=scripts,
                                      color_scheme=scheme, offline=True)  # fmt: skip
        contexts.append(context)
        page = context.new_page()
        page.said = []
        page.on("console", lambda m: page.said.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda r: page.said.append(r.url) if r.url.startswith(("http", "ws", "//")) else None)
        page.goto(file.as_uri())
        if scripts:
            page.wait_for_function("document.querySelectorAll('.csq-chart.csq-live').length === 8", timeout=60_000)
        return page

    yield open_page
    for context in contexts:
        context.close()


def chart_of(page, name):
    return page.locator(f"#chart-{name}")


def signal(page, name, *names):
    return [page.evaluate(f"document.getElementById('chart-{name}').view.signal({n!r})") for n in names]


def drawing(page, name):
    return chart_of(page, name).locator("svg").first.inner_html()


def test_every_chart_is_drawn_from_a_folder_without_network(site, opened):
    page = opened(site / "charts.html")
    for name, chart in CHARTS.items():
        assert len(drawing(page, name)) > 1000
        assert chart_of(page, name).locator("svg").first.get_attribute("aria-label") == chart.alt
        assert not chart_of(page, name).locator("img").is_visible()
        assert chart_of(page, name).locator(".csq-words").inner_text() == signals(chart, "words")[0]
    assert page.said == []


@pytest.mark.parametrize("name", CHARTS)
def test_sliders_by_keyboard(site, opened, name):
    page, chart = opened(site / "charts.html"), CHARTS[name]
    for p in (p for p in chart.spec["params"] if "bind" in p):
        control = chart_of(page, name).get_by_role("slider", name=p["bind"]["name"], exact=False)
        before, (value,) = drawing(page, name), signal(page, name, p["name"])
        control.focus()
        for _ in range(2):
            page.keyboard.press("ArrowLeft" if value > (p["bind"]["min"] + p["bind"]["max"]) / 2 else "ArrowRight")
        page.wait_for_timeout(60)
        value, words = signal(page, name, p["name"], "words")
        assert abs(value - p["value"]) == pytest.approx(2 * p["bind"]["step"])
        assert words == signals(chart, "words", **{p["name"]: value})[0]
        assert chart_of(page, name).locator(".csq-words").inner_text() == words
        assert drawing(page, name) != before
        control.fill(str(p["value"]))
    assert page.said == []


def test_sliders_by_mouse_and_the_picture_follows_the_formula(site, opened):
    page = opened(site / "charts.html")
    control = chart_of(page, "staircase").get_by_role("slider", name="Bits k")
    control.scroll_into_view_if_needed()
    box = control.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 7, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    page.wait_for_timeout(60)
    assert signal(page, "staircase", "bits", "levels") == [8, 255]
    tables = page.evaluate(
        "(({ view }) => Object.keys(view._runtime.data).map((name) => view.data(name))"
        ".find((rows) => rows?.length && 'quantized' in rows[0]).map(({ w, quantized }) => ({ w, quantized })))"
        "(document.getElementById('chart-staircase'))"
    )
    w = torch.tensor([row["w"] for row in tables], dtype=torch.float64)
    step = torch.tensor(1 / 255, dtype=torch.float64)
    assert torch.equal(torch.tensor([row["quantized"] for row in tables], dtype=torch.float64),
                       step * round_to_grid(w, step, 0, 8))  # fmt: skip


def test_hovering_a_run_shows_its_layers(site, opened):
    page = opened(site / "charts.html")
    chart_of(page, "front").scroll_into_view_if_needed()
    chart_of(page, "front").locator("svg .mark-symbol path").first.hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    told = page.locator("#vg-tooltip-element").inner_text()
    assert "stem" in told and "bits a weight" in told


def test_without_scripts_and_on_paper_the_pictures_stand(site, opened):
    page = opened(site / "charts.html", scripts=False)
    assert page.locator(".csq-chart > img").count() == 8
    for image in page.locator(".csq-chart > img").all():
        assert image.is_visible() and image.bounding_box()["height"] > 100 and image.get_attribute("alt")
    page = opened(site / "charts.html")
    page.emulate_media(media="print")
    assert all(image.is_visible() for image in page.locator(".csq-chart > img").all())
    assert not any(view.is_visible() for view in page.locator(".csq-view").all())


def test_a_notebook_loads_the_scripts_from_the_network_once(browser, tmp_path):
    asked, page = [], browser.new_page()
    (tmp_path / "cell.html").write_text(
        "<!doctype html><title>cells</title>" + CHARTS["gate"].html() + CHARTS["pull"].html(), "utf8"
    )

    def answer(route):
        asked.append(route.request.url)
        body = f"(() => {{{vl_convert.javascript_bundle()}}})()" if "/vega-embed@" in asked[-1] else ""
        route.fulfill(body=body, content_type="text/javascript")

    page.route(re.compile("^https:"), answer)
    page.goto((tmp_path / "cell.html").as_uri())
    page.wait_for_function("document.querySelectorAll('.csq-live').length === 2")
    names = ("vega", "vega-lite", "vega-embed")
    assert [re.match(r"https://cdn.jsdelivr.net/npm/([\w-]+)@[\d.]+$", url)[1] for url in asked] == list(names)
    page.close()


def test_the_page_is_painted_before_its_charts_are_there(site, opened):
    page = opened(site / "charts.html")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < page.evaluate("window.csqDrawn")


@pytest.mark.parametrize("width", [360, 1440])
def test_no_sideways_scroll(site, opened, width):
    page = opened(site / "charts.html", width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in CHARTS:
        box = chart_of(page, name).locator("svg").first.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["width"] > 250


@pytest.mark.parametrize("width, dark", [(360, False), (1440, True)])
def test_the_built_page(opened, width, dark):
    """The page of the book itself, where it is built."""
    file = ROOT / "_build/html/book/charts.html"
    if not file.exists():
        pytest.skip("no built book with charts: run make book")
    page = opened(file, width, dark=dark)
    assert page.said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    color = page.evaluate("getComputedStyle(document.querySelector('.csq-chart svg text')).fill")
    ground = page.evaluate("getComputedStyle(document.querySelector('.csq-chart').parentElement).backgroundColor")
    bright = sum(map(int, re.findall(r"\d+", color)[:3])) / 3
    assert ground == "rgba(0, 0, 0, 0)" and (bright > 150 if dark else bright < 100)


def test_colours_are_seen_on_both_grounds():
    def light(color):
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))

    for color in (charts.BLUE, charts.ORANGE, charts.GREEN):
        for ground in ("#ffffff", "#121212"):
            high, low = sorted((light(color), light(ground)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 3
