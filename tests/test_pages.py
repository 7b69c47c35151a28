"""The pages keep the measures of the book: short cells, narrow code, and figures that the text speaks of."""

import sys
from functools import lru_cache
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book/_ext"))
import jupytext  # noqa: E402
import pair  # noqa: E402

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
