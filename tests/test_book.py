"""The book's frame: pages and their notebooks in step, honest gates, a site that needs no network.

A tiny book with the real configuration and extensions is built here, so that the gates are seen to
close. Checks of the site run on it, and on the real one where _build/html exists.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
sys.path.insert(0, str(BOOK / "_ext"))
import colab  # noqa: E402
import labels  # noqa: E402
import libhash  # noqa: E402
import pair  # noqa: E402
import try_colab  # noqa: E402

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text("utf8"))
NOTEBOOKS = pair.find_pages()


def name_of(page):
    return f"{page.parent.name}/{page.stem}"


# Pages and their notebooks


@pytest.mark.parametrize("page", NOTEBOOKS, ids=name_of)
def test_a_page_and_its_notebook_are_in_step(page):
    assert pair.check(page) is None


@pytest.mark.parametrize("page", NOTEBOOKS, ids=name_of)
def test_notebook_outputs_hold_no_path_and_no_error(page):
    for cell in nbformat.read(page.with_suffix(".ipynb"), as_version=4).cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            texts = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
            assert not re.search(r"(?<![\w.])/(home|root|Users|tmp|work)/", str(texts))


@pytest.mark.parametrize("page", NOTEBOOKS, ids=name_of)
def test_every_figure_has_alt_text_a_caption_and_a_name(page):
    problems = figures_without_words(nbformat.read(page.with_suffix(".ipynb"), as_version=4))
    assert not problems


def figures_without_words(nb):
    bad = []
    for cell in nb.cells:
        kinds = {kind for output in cell.get("outputs", []) for kind in output.get("data", {})}
        settings = cell.metadata.get("mystnb", {})
        figure = settings.get("figure", {})
        if any(kind.startswith("image/") for kind in kinds) or figure:
            complete = settings.get("image", {}).get("alt") and figure.get("caption") and figure.get("name")
            bad += [] if complete else [cell.source]
    return bad


PAGE = """\
---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
jupytext:
  text_representation:
    extension: .md
    format_name: myst
---

# A page

Its integral, numbered:

```{math}
:label: eq-one

\\int_0^1 x \\, dx = \\tfrac12
```

```{code-cell} ipython3
:tags: [nbval-check-output]
print("value:", open("../csq_mini/value.py").read(), object())
```

```{code-cell} ipython3
import warnings
warnings.warn("its text names a file of this process")
```

```{code-cell} ipython3
---
mystnb:
  image: {alt: A blue square}
  figure: {caption: "The square of {eq}`eq-one`.", name: fig-square}
---
from IPython.display import SVG
SVG('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9" fill="blue"/></svg>')
```

{numref}`fig-square` is a square, and {cite:t}`csq` is cited.
"""
FAILING = PAGE.replace('print("value:"', 'print(1 / 0, "value:"')


def tiny_book(folder):
    """A book of two pages with the real configuration, extensions and static files."""
    for part in ("_ext", "_static"):
        shutil.copytree(BOOK / part, folder / "book" / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "_config.yml", folder)
    shutil.copy(BOOK / "references.bib", folder / "book")
    (folder / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nparts:\n- caption: A part\n  numbered: 1\n"
        "  chapters:\n  - file: book/page\n"
    )
    (folder / "book/index.md").write_text(
        "# Tiny\n\n{doc}`page` is all.\n\n```bash\ngit clone {{ repository }}\n```\n\n```{bibliography}\n```\n"
    )
    (folder / "book/page.md").write_text(PAGE)
    (folder / "csq_mini").mkdir()
    (folder / "csq_mini/value.py").write_text("first")
    return folder


def test_pair_writes_the_same_bytes_twice_and_notices_every_change(tmp_path):
    pytest.importorskip("nbclient", reason='needs pip install -e ".[book]"')
    root = tiny_book(tmp_path)
    page, notebook = root / "book/page.md", root / "book/page.ipynb"
    assert pair.check(page, root) == "its first cell is not the template's"
    pair.make(page, root)
    assert pair.check(page, root) is None
    first = notebook.read_bytes()
    pair.make(page, root)
    assert notebook.read_bytes() == first
    assert not list(root.glob("book/.*.tmp"))

    nb = nbformat.reads(first.decode(), as_version=4)
    assert not figures_without_words(nb)
    assert "value: first" in nb.cells[3].outputs[0].text and "nbval-check-output" in nb.cells[3].metadata.tags
    assert nb.cells[4].outputs == []  # the warning
    assert figures_without_words(nbformat.reads(first.decode().replace("A blue square", ""), as_version=4))
    text = page.read_text()
    for old, new, problem in (
        ("Its integral", "An integral", "other cells"),
        ("value:", "values:", "other cells"),
        ("[nbval-check-output]", "[other]", "other tags"),
        ("name: python3", "name: python4", "another header"),
        ("find_spec", "find_specs", "first cell"),
        ("# A page", "```{code-cell} ipython3\n1\n```\n\n# A page", "stands before"),
    ):
        page.write_text(text.replace(old, new, 1))
        assert problem in pair.check(page, root)
    page.write_text(text)
    for cell in nb.cells:
        cell |= {"outputs": []} if cell.cell_type == "code" else {}
    nbformat.write(nb, notebook)
    assert "no outputs" in pair.check(page, root)
    notebook.unlink()
    assert "there is no page.ipynb" in pair.check(page, root)


def test_pair_renews_the_text_alone_while_the_code_is_the_same(tmp_path):
    pytest.importorskip("nbclient", reason='needs pip install -e ".[book]"')
    root = tiny_book(tmp_path)
    page = root / "book/page.md"
    pair.make(page, root)
    (root / "csq_mini/value.py").write_text("second")
    page.write_text(page.read_text().replace("Its integral", "An integral"))
    pair.make(page, root, text_alone=True)
    assert pair.check(page, root) is None
    assert "value: first" in page.with_suffix(".ipynb").read_text()  # was not executed
    page.write_text(page.read_text().replace("import warnings", "import warnings as w"))
    with pytest.raises(ValueError, match="without --text"):
        pair.make(page, root, text_alone=True)


def test_the_printed_book_has_contents_numbers_figure_and_reference(tmp_path):
    for module in ("nbclient", "pypandoc", "typst", "pypdf"):
        pytest.importorskip(module, reason='needs pip install -e ".[book,test]"')
    import pdf
    from pypdf import PdfReader

    root = tiny_book(tmp_path)
    pair.make(root / "book/page.md", root)
    pdf.print_book(tmp_path / "out/book.pdf", root)
    reader = PdfReader(tmp_path / "out/book.pdf")
    text = " ".join(" ".join(sheet.extract_text() for sheet in reader.pages).split())
    assert "Contents" in text and "1 A page" in text and "(1.1)" in text and "value: first" in text
    assert "Figure 1.1. The square of (1.1)." in text
    assert "Xiao et al. (2023)" in text and "google.colab" not in text and "importlib" not in text
    assert [entry.title for entry in reader.outline if not isinstance(entry, list)][-1] == "A part"
    assert (tmp_path / "out/pdf/1.svg").exists()


def test_a_failing_page_leaves_its_notebook_alone(tmp_path):
    pytest.importorskip("nbclient", reason='needs pip install -e ".[book]"')
    root = tiny_book(tmp_path)
    page, notebook = root / "book/page.md", root / "book/page.ipynb"
    page.write_text(FAILING)
    notebook.write_text("old")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        pair.make(page, root)
    assert notebook.read_text() == "old" and "setup" not in page.read_text()


# The first cell


def run_cell(cell, folder, *flags, **environment):
    code = f"{cell}\nimport csq_mini\nprint(os.getcwd())\nprint(csq_mini.__file__)"
    run = subprocess.run([sys.executable, *flags, "-c", code], cwd=folder, text=True, capture_output=True,
                         env=os.environ | environment)  # fmt: skip
    assert run.returncode == 0, run.stderr
    return [Path(line) for line in run.stdout.splitlines()]


@pytest.mark.parametrize("start", [".", "book/chapters", "tests"])
def test_first_cell_enters_the_page_s_folder_from_anywhere_in_the_repository(start):
    cell = colab.first_cell(BOOK / "chapters/bits.md")
    place, library = run_cell(cell, ROOT / start, CSQ_REPOSITORY="/nowhere")
    assert place == BOOK / "chapters" and library.parent.name == "csq_mini"
    assert len(cell.splitlines()) <= 16 and colab.address() in cell


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_first_cell_alone_in_a_folder_clones_and_installs(tmp_path):
    origin, stub, here = (tmp_path / name for name in ("origin", "stub", "here"))
    for folder in (origin / "book/_ext", origin / "csq_mini", stub / "pip", here):
        folder.mkdir(parents=True)
    (origin / "book/_ext/colab.py").touch()
    (origin / "csq_mini/__init__.py").touch()
    (stub / "pip/__init__.py").touch()
    (stub / "pip/__main__.py").write_text(
        "import sys; open('../../pip.txt', 'a').write(' '.join(sys.argv[1:]) + '\\n')"
    )
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-C", str(origin)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)

    cell, clone = colab.first_cell(BOOK / "page.md"), here / "csq-mini"
    for start in (here, clone, clone / "book"):  # -S: a Python without the installed csq_mini
        place, library = run_cell(cell, start, "-S", CSQ_REPOSITORY=str(origin), PYTHONPATH=str(stub))
        assert place == clone / "book" and library == clone / "csq_mini/__init__.py"
    asked = (here / "pip.txt").read_text().splitlines()[0].split()
    assert asked[0] == "install" and f"{clone}[notebook]" in asked
    assert not {"-U", "--upgrade", "--force-reinstall"} & set(asked)  # Colab keeps what it ships
    assert not re.search(r"[=<>~]=|<", " ".join(asked).replace(str(clone), ""))


# Pages as Colab opens them


def test_every_page_has_its_turn_in_colab():
    pages = [Path(name) for name in "abcdefg"]
    for commit in ("0", "1f", "9" * 40):
        assert try_colab.chosen(pages, commit) == try_colab.chosen(pages, commit)
    turns = [try_colab.chosen(pages, f"{n:040x}") for n in range(20)]
    assert {len(turn) for turn in turns} == {2} and {page for turn in turns for page in turn} == set(pages)
    assert try_colab.chosen(pages[:1], "5") == pages[:1]


@pytest.fixture(scope="session")
def origin(tmp_path_factory):
    if shutil.which("git") is None or subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("needs git, and a checkout")
    return try_colab.commit_files(tmp_path_factory.mktemp("colab") / "origin")


@pytest.mark.parametrize("page", try_colab.pages_of_this_commit(), ids=name_of)
def test_a_page_alone_in_a_fresh_environment_runs_as_in_colab(page, origin, tmp_path):
    try_colab.try_page(page, tmp_path, origin)


# The configuration


def toc_pages(entry):
    files = [entry[key] for key in ("root", "file") if key in entry]
    return files + [f for key in ("parts", "chapters", "sections") for e in entry.get(key, []) for f in toc_pages(e)]


def test_the_table_of_contents_and_the_pages_agree():
    listed = toc_pages(yaml.safe_load((ROOT / "_toc.yml").read_text("utf8")))
    pages = [
        p for p in BOOK.glob("**/*.md") if not any(part.startswith(("_", ".")) for part in p.relative_to(BOOK).parts)
    ]
    assert len(listed) == len(set(listed))
    assert {str(p.relative_to(ROOT).with_suffix("")) for p in pages} == set(listed)


def test_the_configuration_holds_the_honest_gates():
    sphinx, execute = CONFIG["sphinx"], CONFIG["execute"]
    assert sphinx["config"]["nb_execution_raise_on_error"] is True
    assert execute["execute_notebooks"] == "cache" and not execute.get("allow_errors")
    assert execute["timeout"] >= 300 and not execute.get("exclude_patterns")
    assert CONFIG["only_build_toc_files"] is True
    assert {"**/*.ipynb", ".*/**", "_build/**"} <= set(CONFIG["exclude_patterns"])
    assert "suppress_warnings" not in sphinx["config"]
    for name, folder in sphinx["local_extensions"].items():
        assert (ROOT / folder / f"{name}.py").exists()
    assert {"libhash", "execute", "colab", "offline"} <= set(sphinx["local_extensions"])


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_repository_s_address_stands_in_one_place():
    needle = colab.address().split("://")[1]
    listing = subprocess.run(
        ["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, text=True, capture_output=True
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listing.stdout.split("\0")):
        file = ROOT / name
        if name.startswith((".venv/", "_build/")) or ".egg-info/" in name or not file.is_file():
            continue
        if needle in without_first_cell(file):
            found.append(name)
    assert found == ["_config.yml"]


def without_first_cell(file):
    try:
        text = file.read_text("utf8")
    except UnicodeDecodeError:
        return ""
    if file.suffix == ".md":
        return pair.SETUP.sub("", text)
    if file.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        return json.dumps([c for c in cells if "setup" not in c["metadata"].get("tags", [])])
    return text


def test_the_cache_path_follows_library_results_and_data(tmp_path, monkeypatch):
    monkeypatch.delenv("CSQ_DATA", raising=False)

    def cache_path():
        app, config = SimpleNamespace(outdir=tmp_path / "_build/html", srcdir=tmp_path), SimpleNamespace()
        libhash.set_cache_path(app, config)
        return config.nb_execution_cache_path

    seen = [cache_path()]
    assert Path(seen[0]).parent == tmp_path / "_build/.jupyter_cache"
    for name, content in (
        ("csq_mini/gates.py", "1"),
        ("csq_mini/gates.py", "2"),
        ("csq_mini/baselines/bsq.py", "1"),
        ("book/results/run.json", "{}"),
        ("book/reproductions/published.yml", "figures: []"),
        ("data/cifar10/batch", "1"),
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        seen.append(cache_path())
    assert len(set(seen)) == len(seen)
    (tmp_path / "README.md").write_text("more")
    assert cache_path() == seen[-1]


def test_caches_of_old_states_go(tmp_path):
    pytest.importorskip("myst_nb", reason='needs pip install -e ".[book]"')
    import execute

    for age in range(7):
        (tmp_path / str(age)).mkdir()
        os.utime(tmp_path / str(age), (10**9 - age, 10**9 - age))
    execute.forget_old_states(tmp_path, keep=5)
    assert {folder.name for folder in tmp_path.iterdir()} == set("01234")


# The built site


def build(folder):
    program = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    return subprocess.run([*program, "build", str(folder), "-W", "-n", "--keep-going"], text=True, capture_output=True)


@pytest.fixture(scope="session")
def tiny_site(tmp_path_factory):
    for module in ("jupyter_book", "sphinx-mathjax-offline"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'{module} is missing: pip install -e ".[book]"')
    folder = tiny_book(tmp_path_factory.mktemp("tiny"))
    run = build(folder)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return folder


@pytest.fixture(params=["tiny", "real"])
def site(request):
    if request.param == "tiny":
        return request.getfixturevalue("tiny_site") / "_build/html"
    index = ROOT / "_build/html/index.html"
    sources = [ROOT / "_toc.yml", ROOT / "_config.yml", *BOOK.glob("**/*.md")]
    if not index.exists() or index.stat().st_mtime < max(file.stat().st_mtime for file in sources):
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


def test_the_tiny_site_shows_formula_figure_address_and_colab(tiny_site):
    page = (tiny_site / "_build/html/book/page.html").read_text("utf8")
    assert 'id="equation-eq-one"' in page and '<span class="eqno">(1.1)' in page
    assert 'alt="A blue square"' in page and Page(tiny_site / "_build/html/book/page.html").captions == 1
    assert "value: first" in page and "_static/mathjax/tex-chtml.js" in page
    name = colab.address().split("/", 3)[3]
    assert f"colab.research.google.com/github/{name}/blob/{CONFIG['repository']['branch']}/book/page" in page
    index = re.sub("<[^>]+>", "", (tiny_site / "_build/html/book/index.html").read_text("utf8"))
    assert f"git clone {colab.address()}" in index


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


TIMED = """
```{code-cell} ipython3
import pathlib, time
with open("runs.txt", "a") as log: print(pathlib.Path.cwd().name, time.time(), file=log)
time.sleep(1.5)
with open("runs.txt", "a") as log: print("end", time.time(), file=log)
```
"""


def test_pages_are_executed_two_at_a_time_and_each_once(tiny_site, tmp_path):
    folder = shutil.copytree(tiny_site, tmp_path / "copy")
    toc = folder / "_toc.yml"
    toc.write_text(toc.read_text() + "  - file: book/more/page\n")
    (folder / "book/more").mkdir()
    for name in ("page", "more/page"):  # each writes into its own folder
        text = PAGE + TIMED
        if "/" in name:
            text = text.replace("../csq", "../../csq").replace("eq-one", "eq-two").replace("fig-square", "fig-two")
        (folder / f"book/{name}.md").write_text(text)
    for _ in range(2):
        run = build(folder)
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    times = [[float(line.split()[1]) for line in (folder / place / "runs.txt").read_text().splitlines()]
             for place in ("book", "book/more")]  # fmt: skip
    (start, end), (other_start, other_end) = times  # two lines: executed once
    assert start < other_end and other_start < end


def test_a_changed_library_executes_the_page_again_and_a_failed_cell_fails_every_build(tiny_site, tmp_path):
    folder = shutil.copytree(tiny_site, tmp_path / "copy")
    (folder / "csq_mini/value.py").write_text("second")
    assert build(folder).returncode == 0
    assert "value: second" in (folder / "_build/html/book/page.html").read_text("utf8")
    assert len(list((folder / "_build/.jupyter_cache").iterdir())) == 2
    (folder / "book/page.md").write_text(FAILING)
    for _ in range(2):
        run = build(folder)
        said = run.stdout + run.stderr
        assert run.returncode != 0 and "ZeroDivisionError" in said and "book/page" in said
