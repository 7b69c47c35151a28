"""The book in plain Markdown, as its notebooks and its PDF have it: numbers, citations, tables, and no MyST left."""

import re

import nbformat
import pytest

pytest.importorskip("jupytext", reason='needs pip install -e ".[book]"')
import labels
import pair
import plain

HEADER = "---\nkernelspec:\n  display_name: Python 3\n  name: python3\n---\n\n"
FIGURE = "```{{code-cell}}\n---\nmystnb:\n  figure:\n    caption: {}\n    name: {}\n---\n1\n```\n"
REFERENCES = r"""
@misc{one,
  title  = {{ONE} step},
  author = {L{\'e}onard, Nicholas},
  year   = {2013},
  eprint = {1308.3432},
}

@article{two,
  title  = {Two},
  author = {Xu, A. and Berg, B.},
  year   = {2020},
  doi    = {10.1/x},
}

@article{many,
  title  = {Many},
  author = {Xu, A. and others},
  year   = {2021},
}
"""


@pytest.fixture
def tree(tmp_path):
    """Two chapters with numbers between pages without."""
    pages = {
        "index": "# Start\n\n:::{figure} a.svg\n:name: fig-cover\n:alt: A.\n\nThe cover.\n:::\n",
        "chapters/first": f"{HEADER}# First\n\n```{{math}}\n:label: eq-a\na = b\n```\n\n"
        f"{FIGURE.format('One', 'fig-a')}",
        "chapters/second": f"{HEADER}# Second\n\n{FIGURE.format('See {eq}`eq-a`.', 'fig-b')}\n"
        "$$\nx\n$$\n\n$$\ny\n$$ (eq-b)\n\n(here)=\n## A place\n",
        "last": f"{HEADER}# Last\n\n:::{{note}}\n{FIGURE.format('Held', 'fig-c')}:::\n",
    }
    for name, text in pages.items():
        file = tmp_path / f"book/{name}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "book/references.bib").write_text(REFERENCES)
    (tmp_path / "_config.yml").write_text("repository: {url: https://example.org/name}\n")
    (tmp_path / "_toc.yml").write_text(
        "root: book/index\nparts:\n- numbered: 1\n  chapters:\n  - file: book/chapters/first\n"
        "  - file: book/chapters/second\n- chapters:\n  - file: book/last\n"
    )
    return tmp_path


@pytest.fixture
def plainly(tree):
    page = plain.Page(tree / "book/chapters/second.md", labels.read_book(tree))
    return lambda text: page.render(text).strip()


def test_figures_and_equations_count_by_chapter_and_elsewhere_together(tree):
    numbers = {label: found[1] for label, found in labels.read_book(tree).labels.items()}
    assert numbers == {
        "fig-cover": "1", "eq-a": "1.1", "fig-a": "1.1", "fig-b": "2.1", "eq-b": "2.1", "here": "", "fig-c": "2",
    }  # fmt: skip


@pytest.mark.parametrize(
    "myst, markdown",
    [
        ("{numref}`fig-a` and {numref}`picture %s <fig-cover>`", "Figure 1.1 and picture 1"),
        ("by {eq}`eq-b`", "by (2.1)"),
        ("{doc}`first`, {doc}`the cover <../index>`", "[First](first.ipynb), [the cover](../index.md)"),
        ("[words](../last.md#there)", "[words](../last.ipynb)"),
        ("{ref}`here`", "A place"),
        ("{cite:p}`one`", "([Léonard, 2013](https://arxiv.org/abs/1308.3432))"),
        ("{cite:t}`two`", "[Xu and Berg (2020)](https://doi.org/10.1/x)"),
        ("{cite:p}`many,two`", "(Xu et al., 2021; [Xu and Berg, 2020](https://doi.org/10.1/x))"),
        ("```{math}\n:label: eq-b\ny\n```", "$$\ny \\tag{2.1}\n$$"),
        ("$$\nx\n$$\n\n$$ y $$ (eq-b)", "$$\nx\n$$\n\n$$\ny \\tag{2.1}\n$$"),
        ("```{math}\na \\\\ b\n```", "$$\n\\begin{aligned}a \\\\ b\\end{aligned}\n$$"),
        (":::{note}\nRead {eq}`eq-a`.\n:::", "> **Note**\n>\n> Read (1.1)."),
        ("````{admonition} Why\n```python\n1\n```\n````", "> **Why**\n>\n> ```python\n> 1\n> ```"),
        ("```{list-table}\n:header-rows: 1\n* - a\n  - b\n* - {eq}`eq-a`\n  - c | d\n```",
         "| a | b |\n| --- | --- |\n| (1.1) | c \\| d |"),
        ("```{code-block} bash\nmake\n```", "```bash\nmake\n```"),
        ("A term\n: its *meaning*", "- **A term**: its *meaning*"),
        ("```{glossary}\n:sorted:\n\nbit\n  0 or 1, see {term}`code`\n```", "- **bit**: 0 or 1, see *code*"),
        ("(here)=\n## A place", "## A place"),
        ("get {{ repository }}", "get https://example.org/name"),
        ("`{eq}` stays code, and so does ``{doc}`x` ``", "`{eq}` stays code, and so does ``{doc}`x` ``"),
        ("```python\nf(`{eq}`)  # {eq}`eq-a`\n```", "```python\nf(`{eq}`)  # {eq}`eq-a`\n```"),
        ("{doc}`not_yet`, {eq}`nothing`", "[not yet](not_yet.md), (?)"),
    ],
)  # fmt: skip
def test_myst_in_plain_markdown(plainly, myst, markdown):
    assert plainly(myst) == markdown


def test_a_bibliography_becomes_a_list(plainly):
    lines = plainly("```{bibliography}\n:all:\n```").splitlines()
    assert len(lines) == 3 and "[ONE step](https://arxiv.org/abs/1308.3432). 2013." in lines[0]


def test_a_caption_stands_in_a_cell_below_its_figure_and_ids_do_not_change(tree):
    page = tree / "book/chapters/second.md"
    made = [pair.notebook(page.read_text(), page, tree) for _ in range(2)]
    assert made[0] == made[1]
    kinds = [cell.cell_type for cell in made[0].cells]
    place = kinds.index("code")
    assert made[0].cells[place + 1].source == "**Figure 2.1.** See (1.1)."
    (tree / "book/chapters/first.md").write_text(f"{HEADER}# First\n\n$$\nz\n$$ (eq-z)\n\n$$\na\n$$ (eq-a)\n")
    assert "(1.2)" in pair.notebook(page.read_text(), page, tree).cells[place + 1].source


MYST = re.compile(r"^ *(`{3,}|:{3,})\{|(?<!`)\{[\w:-]+\}`[^`]|^\([\w-]+\)=$|^: |\(\?\)", re.M)


@pytest.mark.parametrize("page", pair.find_pages(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_no_notebook_shows_myst(page):
    for cell in nbformat.read(page.with_suffix(".ipynb"), as_version=4).cells:
        assert cell.cell_type != "markdown" or not MYST.search(cell.source), cell.source
