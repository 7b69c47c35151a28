"""The pages keep the measures of the book: short cells, narrow code, and figures that the text speaks of."""

import json
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from statistics import median

import pytest
import yaml

jupytext = pytest.importorskip("jupytext", reason='needs pip install -e ".[book]"')
import facts
import pair

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
WIDTH = 76  # a longer line scrolls on the page
CHAPTERS = [page for page in pair.find_pages() if page.parent.name == "chapters"]


def name_of(page):
    return f"{page.parent.name}/{page.stem}"


@lru_cache(maxsize=100)
def read(page):
    return jupytext.reads(page.read_text("utf8"), fmt=pair.MYST).cells


def code_cells(page):
    """The cells that a reader sees."""
    return [c for c in read(page) if c.cell_type == "code" and "setup" not in c.metadata.get("tags", [])]


def test_cells_of_the_chapters_are_short():
    lengths = [len(cell.source.splitlines()) for page in CHAPTERS for cell in code_cells(page)]
    assert median(lengths) <= 6
    assert sum(length < 20 for length in lengths) >= 0.9 * len(lengths)


@pytest.mark.parametrize("page", CHAPTERS, ids=name_of)
def test_no_line_of_a_chapter_is_wide(page):
    lines = [line for cell in code_cells(page) for line in cell.source.splitlines()]
    assert not [line for line in lines if len(line) > WIDTH]


@pytest.mark.parametrize("page", CHAPTERS, ids=name_of)
def test_the_text_speaks_of_every_figure(page):
    figures = [cell.metadata.get("mystnb", {}).get("figure", {}).get("name") for cell in code_cells(page)]
    text = " ".join(cell.source for cell in read(page) if cell.cell_type == "markdown")
    assert not [name for name in figures if name and f"{{numref}}`{name}`" not in text]


# The book as a whole


def toc_pages(entry):
    files = [entry[key] for key in ("root", "file") if key in entry]
    return files + [f for key in ("parts", "chapters", "sections") for e in entry.get(key, []) for f in toc_pages(e)]


def test_the_table_of_contents_and_the_pages_agree():
    listed = toc_pages(yaml.safe_load((ROOT / "_toc.yml").read_text("utf8")))
    pages = [p for p in BOOK.glob("**/*.md")
             if not any(part.startswith(("_", ".")) for part in p.relative_to(BOOK).parts)]  # fmt: skip
    assert len(listed) == len(set(listed))
    assert {str(p.relative_to(ROOT).with_suffix("")) for p in pages} == set(listed)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_repository_s_address_stands_in_one_place():
    needle = facts.address().split("://")[1]
    listing = subprocess.run(
        ["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, text=True, capture_output=True
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in filter(None, listing.stdout.split("\0"))]
    files = [file for file in files if file.is_file() and ".egg-info" not in str(file)]
    assert [file.name for file in files if needle in without_first_cell(file)] == ["_config.yml"]


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
