"""Every page of the built book in a real browser, with the network cut off, and judged by axe-core.

Each page is opened from its folder twice, wide and light, narrow and dark, and changes its mode and width while it is
open. What is seen is collected once (`seen`); each test then asks one question of all pages and names those that fail.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import axe
import pytest

ROOT = Path(__file__).resolve().parents[1]
import access

SITE = Path(os.environ.get("CSQ_SITE_FOLDER", ROOT / "_build/html"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OFFLINE = ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-gpu"]
WIDE, NARROW = 1440, 360
TABS = 2
OUR_BYTES = 480_000  # chapter 6, with its recorded runs, is the largest
MADE_BY_SPHINX = ("genindex.html", "search.html", "py-modindex.html")  # no text of ours
OUR_STATIC = re.compile(r"_static/(book\.css|logo\.svg|cover\.svg|charts/charts\.\w+)$")
BUNDLE = "_static/charts/vega.js"
WHOLE = ("book/index.html", "book/charts.html", "search.html")  # the frame, alike on all pages, is judged on these

# What the theme brings: (rule, the start of its element) and why it is left.
THEMES = {
    ("label-content-name-mismatch", '<button class="btn search-button-field'): "it shows the keys Ctrl + K, too",
    ("label-content-name-mismatch", '<button class="btn btn-sm nav-link pst-navbar-icon theme-switch-button'):
        "it is called Color mode, and has the mode's name for hovering mice",
    ("summary-name", "<summary>"): "the arrow beside a part of the contents; the link before it has the name",
}  # fmt: skip


# What a page tells. (All of it in one call: each call is a way to the browser and back.)
READ = """
async () => {
  await window.MathJax?.startup?.promise;
  const all = (selector) => [...document.querySelectorAll(selector)];
  const article = document.querySelector("article.bd-article") ?? document.body;
  return {
    charts: all(".csq-chart").length,
    images: all("img").filter((i) => i.checkVisibility() && i.loading !== "lazy").map((i) =>
      [i.getAttribute("src"), i.complete && i.naturalWidth > 0]),
    formulas: all(".math").length, drawn: all(".math mjx-container").length,
    failed: all("mjx-merror, [data-mjx-error]").map((e) => e.textContent),
    headings: [...article.querySelectorAll("h1, h2, h3, h4, h5, h6")].map((h) => [+h.tagName[1], h.innerText]),
    paint: performance.getEntriesByName("first-contentful-paint")[0]?.startTime,
    chartsAt: window.csqDrawn,
    vega: performance.getEntriesByType("resource").find((r) => r.name.endsWith("charts/vega.js"))?.responseEnd,
  };
}
"""
# What reaches over the right edge and is in no box that scrolls; what the page itself could be scrolled by.
SIDEWAYS = """
() => {
  const width = document.documentElement.clientWidth;
  const own = (e) => /(auto|scroll|hidden|clip)/.test(getComputedStyle(e).overflowX);
  const scrolls = (e) => e && (own(e) || scrolls(e.parentElement));
  const over = [...document.querySelectorAll("article.bd-article *")].filter((e) =>
    e.getBoundingClientRect().right > width + 1 && e.checkVisibility() && !e.closest("mjx-assistive-mml")
    && !scrolls(e.parentElement));
  return [document.documentElement.scrollWidth - width, over.slice(0, 3).map((e) => e.outerHTML.slice(0, 120))];
}
"""
CHARTS = """
() => [...document.querySelectorAll(".csq-chart")].map((box) => {
  const svg = box.querySelector("svg"), size = svg?.getBoundingClientRect();
  const letters = [...box.querySelectorAll("svg text")].filter((t) => t.textContent.trim());
  return [box.id, box.classList.contains("csq-live"), size?.width ?? 0, size?.height ?? 0,
          svg?.querySelectorAll(".mark-group path, .mark-group text").length ?? 0,
          [...new Set(letters.map((t) => getComputedStyle(t).fill))].join(" "),
          Math.max(0, ...[...box.querySelectorAll(".csq-view *")].map((e) => e.getBoundingClientRect().right))];
})
"""
JUDGE = """
async (place) => {
  const told = await axe.run(place ?? document, { resultTypes: ["violations"], preload: false });
  return told.violations.filter(({ impact }) => /serious|critical/.test(impact)).flatMap(({ id, nodes }) =>
    nodes.map((node) => ({ rule: id, html: node.html.slice(0, 200), said: node.failureSummary.slice(0, 300),
      ours: !!document.querySelector(node.target[0])?.closest("article.bd-article") })));
}
"""


@dataclass
class Seen:
    """All that one page showed and said."""

    file: str
    said: list = field(default_factory=list)  # errors, warnings, failed requests
    outside: list = field(default_factory=list)  # requests for another place than the folder
    asked: set = field(default_factory=set)  # files of the folder
    told: dict = field(default_factory=dict)
    sideways: dict = field(default_factory=dict)
    charts: dict = field(default_factory=dict)
    findings: list = field(default_factory=list)


def missing(why):
    """Skips; in .ci/run, which has built the book and has a browser, fails."""
    (pytest.fail if os.environ.get("CSQ_SITE") else pytest.skip)(why)


@pytest.fixture(scope="session")
def site():
    sources = [ROOT / "_toc.yml", ROOT / "_config.yml", *ROOT.glob("book/**/*.md"), *ROOT.glob("book/**/*.ipynb")]
    last = SITE / "searchindex.js"  # each build writes it
    if not last.exists():
        missing("the book is not built: make book")
    if "CSQ_SITE_FOLDER" not in os.environ and last.stat().st_mtime < max(f.stat().st_mtime for f in sources):
        missing("the built book is older than its pages: make book")
    return SITE


@pytest.fixture(scope="session")
def judge():
    """The script of axe-core."""
    try:
        return axe.source()
    except OSError as problem:
        missing(f"{problem}. With a network: python tests/axe.py")


def files_of(site):
    """All pages; not the first, which only leads to the book's."""
    return sorted(str(p.relative_to(site)) for p in site.glob("**/*.html")
                  if "_static" not in p.parts and p != site / "index.html")  # fmt: skip


@pytest.fixture(scope="session")
def launch():
    """Starts the browser: the system's Chromium, or the one that Playwright fetched."""
    api = pytest.importorskip("playwright.async_api", reason="needs pip install playwright, and a Chromium")

    async def started(play):
        place = next(filter(None, map(shutil.which, BROWSERS)), None)
        return await play.chromium.launch(executable_path=place, args=OFFLINE)

    async def attempt():
        async with api.async_playwright() as play:
            await (await started(play)).close()

    try:
        asyncio.run(attempt())
    except api.Error:
        missing("no Chromium: sudo apt-get install chromium, or playwright install chromium")
    return api.async_playwright, started


@pytest.fixture(scope="session")
def seen(site, launch):
    """{file: Seen}, every page visited. Where axe-core is missing the findings are empty, and its tests skip."""
    try:
        script = axe.source()
    except OSError:
        script = None
    return asyncio.run(visit_all(site, launch, script))


async def visit_all(site, launch, script):
    playwright, started = launch
    pages = {file: Seen(file) for file in files_of(site)}
    async with playwright() as play:
        browser = await started(play)
        queue = list(pages.values())[::-1]

        async def tab():
            while queue:
                page = queue.pop()
                await visit(browser, site, page, WIDE, "light", script)
                await visit(browser, site, page, NARROW, "dark", script)

        await asyncio.gather(*(tab() for _ in range(TABS)))
        await browser.close()
    return pages


async def open_page(browser, site, seen, width, mode, query=""):
    context = await browser.new_context(viewport={"width": width, "height": 900}, color_scheme=mode, offline=True)
    page = await context.new_page()
    page.set_default_timeout(60_000)

    def asked(request):
        url = urlsplit(request.url)
        if url.scheme == "file":
            seen.asked.add(str(Path(unquote(url.path)).relative_to(site.resolve())))
        elif url.scheme not in ("data", "blob"):
            seen.outside.append(request.url)

    page.on("console", lambda m: seen.said.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.said.append(str(error)))
    page.on("requestfailed", lambda r: seen.said.append(f"{r.url}: {r.failure}"))
    page.on("request", asked)
    await page.goto((site.resolve() / seen.file).as_uri() + query)
    return context, page


async def visit(browser, site, seen, width, mode, script):
    """Opens a page, looks, turns it to the other mode, and looks again."""
    context, page = await open_page(browser, site, seen, width, mode)
    try:
        await page.wait_for_function("!document.querySelector('.csq-chart:not(.csq-live)')")
        seen.told[width] = await page.evaluate(READ)
        if script:
            await page.evaluate(script)
        for now in (mode, {"light": "dark", "dark": "light"}[mode]):
            if now != mode:
                await page.emulate_media(color_scheme=now)
            await page.wait_for_function(f"document.documentElement.dataset.theme === '{now}'")
            await page.evaluate("new Promise((next) => requestAnimationFrame(() => setTimeout(next, 50)))")
            seen.sideways[width, now] = await page.evaluate(SIDEWAYS)
            seen.charts[width, now] = await page.evaluate(CHARTS)
            if script and now == mode:
                place = None if seen.file in WHOLE else "article.bd-article"
                seen.findings += [f | {"at": (width, now)} for f in await page.evaluate(JUDGE, place)]
    except Exception as error:
        seen.said.append(f"{width} px, {mode}: {error}")
    await context.close()


def blamed(seen, what):
    """What each page has to be blamed for, as text for the assertion; empty where nothing."""
    found = {file: blame for file, page in seen.items() if (blame := what(page))}
    return json.dumps(found, indent=1, ensure_ascii=False, default=str) if found else ""


# The questions


def test_no_page_complains_or_asks_for_what_is_not_there(seen):
    assert len(seen) > 10
    assert not blamed(seen, lambda page: page.said)


def test_no_page_asks_the_network(seen):
    assert not blamed(seen, lambda page: page.outside)


def test_no_page_scrolls_sideways_in_any_mode_and_width(seen):
    assert all(len(page.sideways) == 4 for page in seen.values())
    assert not blamed(seen, lambda page: {str(at): found for at, found in page.sideways.items() if found[0] > 0
                                          or found[1]})  # fmt: skip


def test_every_picture_is_there(seen):
    assert not blamed(seen, lambda page: [src for told in page.told.values() for src, there in told["images"]
                                          if not there])  # fmt: skip


def test_every_chart_is_drawn_in_every_mode_and_width(seen):
    def undrawn(page):
        return [(name, width, mode) for (width, mode), charts in page.charts.items()
                for name, live, wide, high, marks, color, right in charts
                if not (live and color and 250 < wide <= width >= right and high > 100 and marks > 5)]  # fmt: skip

    assert sum(page.told[WIDE]["charts"] for page in seen.values()) >= 8
    assert not blamed(seen, undrawn)
    for page in seen.values():
        letters = [[chart[5] for chart in page.charts[WIDE, mode]] for mode in ("light", "dark")]
        assert not letters[0] or letters[0] != letters[1], f"{page.file}: its charts do not follow the mode"


def test_every_formula_is_drawn_without_the_network(seen):
    assert sum(page.told[WIDE]["formulas"] for page in seen.values()) > 100
    assert not blamed(seen, lambda page: [told for told in page.told.values() if told["formulas"] != told["drawn"]
                                          or told["failed"]])  # fmt: skip


def test_headings_descend_step_by_step(seen):
    def jumps(page):
        levels = [level for level, _ in page.told[WIDE]["headings"]]
        steps = [page.told[WIDE]["headings"][i] for i in range(1, len(levels)) if levels[i] > levels[i - 1] + 1]
        return steps or (levels.count(1) != 1 or levels[0] != 1) * [page.told[WIDE]["headings"]]

    assert not blamed({file: page for file, page in seen.items() if file not in MADE_BY_SPHINX}, jumps)


def test_nothing_of_ours_has_a_serious_finding(seen, judge):
    assert not blamed(seen, lambda page: [finding for finding in page.findings if finding["ours"]])


def test_what_the_theme_brings_is_known(seen, judge):
    found = [finding for page in seen.values() for finding in page.findings if not finding["ours"]]
    known = {key: [f for f in found if f["rule"] == key[0] and f["html"].startswith(key[1])] for key in THEMES}
    assert not [f for f in found if not any(f in findings for findings in known.values())]
    assert all(known.values()), "the theme has mended something: take it out of THEMES"


# Weight


def our_bytes(site, page):
    """The page's text, its pictures, and our styles and scripts; without theme, math, search and Vega."""
    html = (site / page.file).read_text("utf8")
    text = re.search(r'<article class="bd-article".*?</article>', html, re.S)
    files = [file for file in page.asked if file.startswith("_images/") or OUR_STATIC.search(file)]
    return len(text[0].encode()) + sum((site / file).stat().st_size for file in files) if text else 0


def test_our_own_part_of_a_page_is_light(seen, site):
    assert max(our_bytes(site, page) for page in seen.values()) > 100_000  # it counts
    assert not blamed(seen, lambda page: max(0, our_bytes(site, page) - OUR_BYTES))


def test_only_pages_with_charts_load_the_bundle(seen):
    assert not blamed(seen, lambda page: (BUNDLE in page.asked) != (page.told[WIDE]["charts"] > 0))


def test_first_paint_waits_for_no_chart(seen):
    charted = {file: page for file, page in seen.items() if page.told[WIDE]["charts"]}
    assert charted
    assert not blamed(charted, lambda page: [told for told in page.told.values()
                                             if not told["paint"] < told["chartsAt"]])  # fmt: skip


def test_names_and_roles_are_put_right():
    signature = '<span class="sig-paren">(</span>\n\n<dl>\n<dd><em>a</em>,</dd>\n</dl>\n\n<span class="sig-paren">)'
    body = access.put_right(f'<dl><dt>{signature}</span></dt><dd>told</dd></dl><div role="doc-biblioentry">')
    assert body.count("<dl>") == body.count("<dd>") == 1 and '<div class="sig-line"><em>a</em>,</div>' in body
    assert 'role="listitem"' in body


# Search, and the way in


def test_search_finds_a_term(site, launch):
    async def search():
        playwright, started = launch
        async with playwright() as play:
            browser = await started(play)
            seen = Seen("index.html")
            context, page = await open_page(browser, site, seen, WIDE, "light")
            await page.wait_for_url("**/book/index.html")
            await page.keyboard.press("Control+k")
            await page.locator("input[type=search]:visible").first.fill("sigmoid")
            await page.keyboard.press("Enter")
            await page.wait_for_url("**/search.html?q=sigmoid*")
            await page.wait_for_selector("#search-results li a")
            await page.wait_for_function("/finished|found/i.test(document.querySelector('#search-results').innerText)")
            links = await page.locator("#search-results li a").evaluate_all("(all) => all.map((a) => a.href)")
            await page.locator("#search-results li a").first.click()
            await page.wait_for_selector("article.bd-article h1")
            text = await page.locator("article.bd-article").inner_text()
            await browser.close()
            return links, text, seen

    links, text, seen = asyncio.run(search())
    assert any("/gate.html" in link for link in links) and "sigmoid" in text.lower()
    assert not seen.said and not seen.outside
