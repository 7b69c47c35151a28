"""The charts on a site of their own, read and moved in a headless Chromium."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from vega_charts import NAMES, chart, signals

from csq_mini.bits import round_to_grid

pytest.importorskip("vl_convert", reason='needs pip install -e ".[book]"')
pytest.importorskip("altair", reason='needs pip install -e ".[notebook]"')

ROOT = Path(__file__).resolve().parents[2]


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
        f"\n{name}\n{'-' * 40}\n\n.. raw:: html\n\n   "
        + chart(name).html(chart(name).svg()).replace("\n", "\n   ") + "\n" for name in NAMES
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
    for name in NAMES:
        assert len(drawing(page, name)) > 1000
        assert chart_of(page, name).locator("svg").first.get_attribute("aria-label") == chart(name).alt
        assert not chart_of(page, name).locator("img").is_visible()
        assert chart_of(page, name).locator(".csq-words").inner_text() == signals(name, "words")[0]
    assert page.said == []


@pytest.mark.parametrize("name", NAMES)
def test_sliders_by_keyboard(site, opened, name):
    page = opened(site / "charts.html")
    for p in (p for p in chart(name).spec["params"] if "bind" in p):
        control = chart_of(page, name).get_by_role("slider", name=p["bind"]["name"], exact=False)
        before, (value,) = drawing(page, name), signal(page, name, p["name"])
        control.focus()
        for _ in range(2):
            page.keyboard.press("ArrowLeft" if value > (p["bind"]["min"] + p["bind"]["max"]) / 2 else "ArrowRight")
        page.wait_for_timeout(60)
        value, words = signal(page, name, p["name"], "words")
        assert abs(value - p["value"]) == pytest.approx(2 * p["bind"]["step"])
        assert words == signals(name, "words", **{p["name"]: value})[0]
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
    from vl_convert import javascript_bundle

    asked, page = [], browser.new_page()
    (tmp_path / "cell.html").write_text(
        "<!doctype html><title>cells</title>" + chart("gate").html() + chart("pull").html(), "utf8"
    )

    def answer(route):
        asked.append(route.request.url)
        body = f"(() => {{{javascript_bundle()}}})()" if "/vega-embed@" in asked[-1] else ""
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
    for name in NAMES:
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
