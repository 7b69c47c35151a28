"""The build shows what the notebooks store, a failed page stops it, and the site stands alone.

A tiny book with the real configuration and extensions is built here, so that its gates are seen to close. Checks of the
site run on it, and on the real one where _build/html exists.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote

import nbformat
import pytest
import yaml
from tiny_book import FAILING, ROOT, build, built, tiny_book

for module in ("jupyter_book", "scour", "sphinx-mathjax-offline"):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f'{module} is missing: pip install -e ".[book]"', allow_module_level=True)
import csq_mini as csq
import facts
import labels
import pair
import stored

BOOK = ROOT / "book"
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text("utf8"))


# The build


@pytest.fixture(scope="session")
def tiny_site(tmp_path_factory):
    """The tiny book, its notebook made, then its site built; ``value.txt`` has changed in between."""
    root = tiny_book(tmp_path_factory.mktemp("tiny"))
    pair.renew(root / "book/page.md", root)
    (root / "book/value.txt").write_text("second")
    built(root)
    return root


@pytest.fixture
def copied(tiny_site, tmp_path):
    return shutil.copytree(tiny_site, tmp_path / "copy", ignore=shutil.ignore_patterns("html"))


def test_the_site_shows_what_the_notebook_stores(tiny_site):
    """Nothing is executed: the file that the page prints says another thing now."""
    html = (tiny_site / "_build/html/book/page.html").read_text("utf8")
    assert "value: first" in html and "value: second" not in html
    assert 'alt="A blue square"' in html and Page(tiny_site / "_build/html/book/page.html").captions == 1


def test_words_of_a_figure_may_change_without_executing_it(copied):
    page = copied / "book/page.md"
    page.write_text(page.read_text().replace("A blue square", "One blue square").replace("The square of", "It is"))
    html = built(copied)
    assert 'alt="One blue square"' in html and "It is" in html and "value: first" in html


def test_a_page_with_other_code_than_its_notebook_is_executed(copied):
    page = copied / "book/page.md"
    page.write_text(page.read_text().replace('"value:"', '"new value:"'))
    run = build(copied)
    assert run.returncode == 0 and "book/page: executed, since its notebook has other code" in run.stdout
    assert "new value: second" in (copied / "_build/html/book/page.html").read_text("utf8")
    (copied / "book/value.txt").write_text("third")
    assert "new value: third" in built(copied)  # what a build has executed is not kept for the next


def test_a_failed_cell_fails_every_build(copied):
    (copied / "book/page.md").write_text(FAILING)
    for _ in range(2):
        run = build(copied)
        said = run.stdout + run.stderr
        assert run.returncode != 0 and "ZeroDivisionError" in said and "book/page" in said


def test_outputs_are_taken_from_the_same_code_alone():
    new = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in ("a", "b")])
    old = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text, execution_count=1) for text in ("a", "b")])
    old.cells.insert(1, nbformat.v4.new_markdown_cell("a caption"))
    assert stored.take_outputs(new, old) and new.cells[1].execution_count == 1
    for cells in (old.cells[:1], [*old.cells, nbformat.v4.new_code_cell("c")], old.cells[::-1]):
        assert not stored.take_outputs(new, nbformat.v4.new_notebook(cells=cells))


def test_the_printed_book_has_contents_numbers_figure_reference_and_the_same_outputs(tiny_site, tmp_path):
    for module in ("pypandoc", "typst", "pypdf"):
        pytest.importorskip(module, reason='needs pip install -e ".[book,test]"')
    from pypdf import PdfReader

    import pdf

    pdf.print_book(tmp_path / "out/book.pdf", tiny_site)
    reader = PdfReader(tmp_path / "out/book.pdf")
    text = " ".join(" ".join(sheet.extract_text() for sheet in reader.pages).split())
    assert "Contents" in text and "1 A page" in text and "(1.1)" in text and "value: first" in text
    assert "Figure 1.1. The square of (1.1)." in text and "all 1 pages" in text
    assert "Xiao et al. (2023)" in text and "google.colab" not in text and "importlib" not in text
    assert [entry.title for entry in reader.outline if not isinstance(entry, list)][-1] == "A part"
    assert (tmp_path / "out/pdf/1.svg").exists()


# The built site


@pytest.fixture(params=["tiny", "real"])
def site(request):
    if request.param == "tiny":
        return request.getfixturevalue("tiny_site") / "_build/html"
    last = ROOT / "_build/html/searchindex.js"  # each build writes it
    sources = [ROOT / "_toc.yml", ROOT / "_config.yml", *BOOK.glob("**/*.md"), *BOOK.glob("**/*.ipynb")]
    if not last.exists() or last.stat().st_mtime < max(file.stat().st_mtime for file in sources):
        miss = pytest.fail if os.environ.get("CSQ_SITE") else pytest.skip  # .ci/run has just built it
        miss("the book is not built, or older than its pages: make book")
    return ROOT / "_build/html"


class Page(HTMLParser):
    """What a page loads, the scripts and styles written into it, and its images."""

    def __init__(self, file):
        super().__init__()
        self.loads, self.inline, self.images, self.captions = [], [], [], 0
        self.open = self.kind = None
        self.feed(file.read_text("utf8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.open, self.kind = tag, attrs.get("type") or ""
        if tag == "link" and not set(attrs.get("rel", "").split()) & {"canonical", "index", "search", "next", "prev"}:
            self.loads.append(attrs["href"])
        elif tag not in ("a", "link"):
            self.loads += [attrs[key] for key in ("src", "data", "poster") if tag != "object" and attrs.get(key)]
            self.loads += [part.split()[0] for part in (attrs.get("srcset") or "").split(",") if part.strip()]
        if attrs.get("style"):
            self.inline.append(attrs["style"])
        if tag == "img" and "logo__image" not in attrs.get("class", ""):  # the title stands beside the logo
            self.images.append(attrs)
        self.captions += tag == "figcaption"

    def handle_data(self, data):
        if self.open in ("script", "style"):
            self.inline.append(data)

    def handle_endtag(self, tag):
        self.open = None


ELSEWHERE = re.compile(r"(https?:)?//", re.I)
FETCHES = re.compile(
    r"url\(\s*['\"]?(https?:)?//|@import\s+['\"](https?:)?//|//[^\s'\"]+\.(m?js|css|woff2?)\b|unpkg|jsdelivr|cdnjs",
    re.I,
)


def pages(site):
    found = [p for p in site.glob("**/*.html") if "_static" not in p.parts]
    assert found
    return found


def test_no_page_loads_anything_from_another_host(site):
    for file in pages(site):
        page = Page(file)
        assert not [url for url in page.loads if ELSEWHERE.match(url)], file
        assert not [text for text in page.inline if FETCHES.search(text)], file
    for style in site.glob("**/*.css"):
        assert not re.search(r"(url\(\s*|@import\s+)['\"]?(https?:)?//", style.read_text("utf8")), style


def test_everything_that_a_page_loads_is_there(site):
    for file in pages(site):
        for url in Page(file).loads:
            if not url.startswith(("data:", "#", "http")):
                assert (file.parent / unquote(re.split("[?#]", url)[0])).exists(), f"{file}: {url}"
    assert list(site.glob("_static/mathjax/output/chtml/fonts/woff-v2/MathJax_Math-Italic.woff"))


def test_every_image_has_alt_text(site):
    for file in pages(site):
        for image in Page(file).images:
            assert image.get("alt", "").strip() and "_images/" not in image["alt"], f"{file}: {image}"


def test_the_tiny_site_shows_formula_address_times_and_colab(tiny_site):
    page = (tiny_site / "_build/html/book/page.html").read_text("utf8")
    assert 'id="equation-eq-one"' in page and '<span class="eqno">(1.1)' in page
    assert "_static/mathjax/tex-chtml.js" in page
    name = facts.address().split("/", 3)[3]
    assert f"colab.research.google.com/github/{name}/blob/{CONFIG['repository']['branch']}/book/page" in page
    index = re.sub("<[^>]+>", "", (tiny_site / "_build/html/book/index.html").read_text("utf8"))
    assert f"git clone {facts.address()}" in index
    assert f"Made with csq-mini {csq.__version__}" in index and re.search(r"A page\s+\d+\.\d\s+all 1 pages", index)


def numbers_on(file):
    """{label: number} of the figures, tables and equations of a built page."""
    text = file.read_text("utf8")
    captioned = r'<(?:figure|table)[^>]* id="([^"]+)"(?:(?!<figure|<table).)*?caption-number">\w+ ([\d.]+)'
    equations = r'id="equation-([^"]+)">\s*<span class="eqno">\(([\d.]+)\)'
    return dict(re.findall(captioned, text, re.S) + re.findall(equations, text))


def test_notebooks_number_as_the_built_book_does(site):
    root, shifted = site.parents[1], False
    book = labels.read_book(root)
    for page, chapter in labels.read_toc(root):
        found = [(name, number) for name, (_, number, place, _) in book.labels.items() if place == page and number]
        ours = {name.replace("_", "-"): number for name, number in found}  # as HTML has its names
        theirs = numbers_on(site / page.relative_to(root).with_suffix(".html"))
        # a run that lacks its images here draws nothing, and moves the numbers of the pages that count together
        shifted |= page.parent.name == "reproductions" and set(theirs) < set(ours)
        assert theirs == ours or (shifted and chapter is None), page


def test_every_page_can_be_copied_searched_edited_and_turned(site):
    assert (site / "searchindex.js").exists() and (site / "search.html").exists()
    files = [site / page.relative_to(site.parents[1]).with_suffix(".html") for page, _ in
             labels.read_toc(site.parents[1])]  # fmt: skip
    for number, file in enumerate(files):
        text = file.read_text("utf8")
        assert "copybutton.js" in text and 'class="bd-search' in text, file
        assert ("left-prev" in text) == (number > 0), file
        assert ("right-next" in text) == (number < len(files) - 1), file
        source = file.relative_to(site).with_suffix(".md").as_posix()
        assert f"/edit/{CONFIG['repository']['branch']}/{source}" in text, file


def test_every_figure_of_the_site_has_picture_words_and_caption(site):
    for file in pages(site):
        for figure in re.findall(r"<figure.*?</figure>", file.read_text("utf8"), re.S):
            assert re.search(r'<figure[^>]* id="[\w-]+"', figure), file
            assert re.search(r'caption-text">\s*\S', figure), file
            chart = re.search(r'role="group" aria-label="[^"]+"', figure)  # drawn in the browser
            assert chart or re.search(r'<img[^>]* alt="(?!_images/)[^"]+"', figure), file
