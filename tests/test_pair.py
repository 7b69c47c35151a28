"""Pages and their notebooks: in step, executed when something has changed, and compared by nbval."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from tiny_book import FAILING, tiny_book

for module in ("jupytext", "nbclient", "scour"):
    pytest.importorskip(module, reason='needs pip install -e ".[book]"')
import csq_mini as csq
import pair
import sources

NOTEBOOKS = pair.find_pages()


def name_of(page):
    return f"{page.parent.name}/{page.stem}"


# The pages of the book


@pytest.mark.parametrize("page", NOTEBOOKS, ids=name_of)
def test_a_page_and_its_notebook_are_in_step(page):
    assert pair.check(page) is None


@pytest.mark.parametrize("page", NOTEBOOKS, ids=name_of)
def test_a_notebook_holds_no_path_and_no_error_and_words_for_every_figure(page):
    notebook = nbformat.read(page.with_suffix(".ipynb"), as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            texts = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
            assert not re.search(r"(?<![\w.])/(home|root|Users|tmp|work)/", str(texts))
    assert not figures_without_words(notebook)


def figures_without_words(notebook):
    """Sources of the cells that draw without alternative text, caption and name."""
    bad = []
    for cell in notebook.cells:
        kinds = {kind for output in cell.get("outputs", []) for kind in output.get("data", {})}
        settings = cell.metadata.get("mystnb", {})
        figure = settings.get("figure", {})
        if any(kind.startswith("image/") for kind in kinds) or figure:
            complete = settings.get("image", {}).get("alt") and figure.get("caption") and figure.get("name")
            bad += [] if complete else [cell.source]
    return bad


# One page, from nothing to a notebook


@pytest.fixture
def page(tmp_path):
    return tiny_book(tmp_path) / "book/page.md"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A page whose notebook is made; do not change it."""
    root = tiny_book(tmp_path_factory.mktemp("executed"))
    assert pair.renew(root / "book/page.md", root).startswith("executed in")
    return root


@pytest.fixture
def copied(executed, tmp_path):
    """The same page in a place of its own."""
    return shutil.copytree(executed, tmp_path / "copy") / "book/page.md"


def renew(page, **options):
    return pair.renew(page, page.parents[1], **options)


def problem(page):
    return pair.check(page, page.parents[1])


def test_a_notebook_has_outputs_tags_and_words_but_no_warning_and_no_address(executed):
    nb = nbformat.read(executed / "book/page.ipynb", as_version=4)
    shown = [cell for cell in nb.cells if cell.cell_type == "code"][1:]
    assert "value: first <object object at 0x...>" in shown[0].outputs[0].text
    assert shown[0].metadata.tags == ["nbval-check-output"] and shown[1].outputs == []
    assert 'fill="blue"' in shown[2].outputs[0].data["image/svg+xml"] and not figures_without_words(nb)
    shown[2].metadata.mystnb.image.alt = ""
    assert figures_without_words(nb) == [shown[2].source]
    assert nb.metadata.csq.seconds > 0 and "torch" in nb.metadata.csq.where
    assert not list(executed.glob("**/*.partial"))


def test_nothing_changed_is_nothing_done_and_the_same_again_is_the_same(copied):
    before = copied.with_suffix(".ipynb").read_bytes()
    assert problem(copied) is None and renew(copied) is None
    assert copied.with_suffix(".ipynb").read_bytes() == before
    renew(copied, always=True)
    again = copied.with_suffix(".ipynb").read_bytes()
    assert re.sub(rb'"seconds": .*', b"", again) == re.sub(rb'"seconds": .*', b"", before)


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("Its integral", "An integral", "other text"),
        ("A blue square", "A square", "other text, settings"),
        ("[nbval-check-output]", "[other]", "other text, settings or tags"),
        ("name: python3", "name: python4", "other text"),
        ("value:", "values:", "other code"),
        ("find_spec", "find_specs", "first cell"),
        ("# A page", "```{code-cell} ipython3\n1\n```\n\n# A page", "stands before"),
    ],
)
def test_every_change_of_a_page_is_noticed(copied, old, new, wrong):
    copied.write_text(copied.read_text().replace(old, new, 1))
    assert wrong in problem(copied)


def test_a_notebook_without_outputs_or_none_at_all_is_noticed(copied):
    path = copied.with_suffix(".ipynb")
    nb = nbformat.read(path, as_version=4)
    for cell in nb.cells:
        cell |= {"outputs": []} if cell.cell_type == "code" else {}
    nbformat.write(nb, path)
    assert "no outputs" in problem(copied)
    path.unlink()
    assert problem(copied) == "there is no page.ipynb"


def test_a_changed_text_is_renewed_and_nothing_executed(copied):
    copied.write_text(copied.read_text().replace("Its integral", "An integral").replace("A blue", "One blue"))
    assert renew(copied) == "its text renewed" and problem(copied) is None
    assert "One blue" in copied.with_suffix(".ipynb").read_text()


def test_changed_code_is_executed(copied):
    copied.write_text(copied.read_text().replace('"value:"', '"new value:"'))
    assert renew(copied).startswith("executed")
    assert "new value: first" in copied.with_suffix(".ipynb").read_text()


def test_a_file_that_the_code_names_is_noticed_when_it_changes(copied):
    (copied.parent / "value.txt").write_text("second")
    assert problem(copied) is None  # in step with its page: nbval finds what follows from the change
    assert renew(copied).startswith("executed")
    assert "value: second" in copied.with_suffix(".ipynb").read_text()


def test_a_failing_page_leaves_its_files_alone(page):
    page.write_text(FAILING)
    page.with_suffix(".ipynb").write_text(nbformat.writes(nbformat.v4.new_notebook()))
    before = page.with_suffix(".ipynb").read_text()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        renew(page)
    assert page.with_suffix(".ipynb").read_text() == before and page.read_text() == FAILING


MEETING = """
```{code-cell} ipython3
import pathlib, time
pathlib.Path("here").touch()
for _ in range(600):
    if len(list(pathlib.Path("..").glob("*/here"))) == 2:
        break
    time.sleep(0.1)
else:
    raise TimeoutError("the other page does not run")
```
"""


def test_two_pages_run_at_a_time_and_a_failed_one_is_told(page, capsys):
    for name, text in {"one": page.read_text() + MEETING, "two": page.read_text() + MEETING, "zero": FAILING}.items():
        (page.parent / name).mkdir()
        (page.parent / name / "page.md").write_text(text)
    page.unlink()
    assert pair.main([], page.parents[1]) == 1
    said = capsys.readouterr()
    assert "book/zero/page.md: CellExecutionError" in said.err and "ZeroDivisionError" in said.err
    assert said.out.count(": executed in") == 2


def test_figures_get_smaller_and_keep_their_size_colours_and_own_ids():
    pytest.importorskip("matplotlib")
    pictures = []
    for width in (2, 3):
        with csq.plots.style():
            figure = csq.plots.Picture(width)
            figure.subplots().plot([0, width], [1, 2], color="#012345", label="a line")
        pictures.append(figure.svg())
    slim = [pair.slim(picture) for picture in pictures]
    assert slim == [pair.slim(picture) for picture in pictures]
    for before, after in zip(pictures, slim):
        assert len(after) < 0.8 * len(before) and "#012345" in after and "DOCTYPE" not in after
        sizes = [re.search(r'<svg[^>]* width="([\d.]+pt)"', picture)[1] for picture in (before, after)]
        assert sizes[0] == sizes[1]
    ids = [set(re.findall(r'id="([^"]+)"', picture)) for picture in slim]
    assert ids[0] and not ids[0] & ids[1]


# nbval notices what a changed library does to the outputs


def nbval(page):
    command = [sys.executable, "-m", "pytest", page.with_suffix(".ipynb"), "--nbval-lax", "--nbval-current-env"]
    return subprocess.run([*command, "-p", "no:cacheprovider", "-q"], cwd=page.parent, text=True, capture_output=True)


def test_nbval_compares_what_is_tagged(copied):
    path = copied.with_suffix(".ipynb")
    path.write_text(path.read_text().replace(" <object object at 0x...>", "").replace(", object())", ")"))
    assert nbval(copied).returncode == 0
    (copied.parent / "value.txt").write_text("second")
    run = nbval(copied)
    assert run.returncode == 1 and "value: first" in run.stdout and "value: second" in run.stdout


# What a page's code uses


@pytest.fixture
def tree(tmp_path):
    for name, text in {
        "csq_mini/__init__.py": "from . import gates", "csq_mini/gates.py": "", "csq_mini/weights/a.json": "{}",
        "book/csq_book/__init__.py": "", "book/csq_book/charts.py": "from csq_mini import gates",
        "book/csq_book/labs.py": "from .picture import draw",
        "book/csq_book/picture.py": 'FILE = "book/results/all.json"',
        "book/csq_book/puzzles/__init__.py": "import importlib",
        "book/csq_book/puzzles/bits.py": "from .. import charts",
        "book/results/all.json": "1", "book/results/rows/a.csv": "1",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


LIBRARY = {"csq_mini/__init__.py", "csq_mini/gates.py", "csq_mini/weights/a.json"}


@pytest.mark.parametrize(
    ("code", "files"),
    [
        ("import csq_mini as csq", LIBRARY),
        ("import torch\nfrom csq_mini.gates import gate", {"csq_mini/gates.py"}),
        ("from csq_book import charts", {"book/csq_book/charts.py", "csq_mini/gates.py"}),
        ("from csq_book.labs import lab",
         {"book/csq_book/labs.py", "book/csq_book/picture.py", "book/results/all.json"}),
        ("from csq_book import puzzles", {"book/csq_book/puzzles/__init__.py", "book/csq_book/puzzles/bits.py",
                                          "book/csq_book/charts.py", "csq_mini/gates.py"}),
        ("def f():\n    return open(root / 'book/results/rows')", {"book/results/rows/a.csv"}),
        ("x = 'book/nothing'", set()),
    ],
)  # fmt: skip
def test_what_a_page_uses_is_found(tree, code, files):
    assert {file.relative_to(tree).as_posix() for file in sources.files_of(code, tree)} == files


def test_the_digest_follows_what_is_used_alone(tree):
    def digests():
        return [sources.digest(f"from csq_book import {name}", tree) for name in ("charts", "labs", "puzzles")]

    before = digests()
    assert digests() == before
    (tree / "csq_mini/gates.py").write_text("new = 1")
    assert [a == b for a, b in zip(digests(), before)] == [False, True, False]
    before = digests()
    (tree / "book/results/all.json").write_text("2")
    assert [a == b for a, b in zip(digests(), before)] == [True, False, True]
