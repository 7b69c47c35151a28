"""The first cell of a page, and pages alone in a fresh environment, as Colab opens them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

for module in ("jupytext", "jupyter_client", "nbclient"):
    pytest.importorskip(module, reason='needs pip install -e ".[book]"')
import facts
import pair
import try_colab

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
TRIED = ("chapters/bits", "charts")  # make colab tries all pages


def run_cell(cell, folder, *flags, **environment):
    code = f"{cell}\nprint(os.getcwd())\nprint(importlib.util.find_spec('csq_mini').origin)"
    run = subprocess.run([sys.executable, *flags, "-c", code], cwd=folder, text=True, capture_output=True,
                         env=os.environ | environment)  # fmt: skip
    assert run.returncode == 0, run.stderr
    return [Path(line) for line in run.stdout.splitlines()]


@pytest.mark.parametrize("start", [".", "book/chapters", "tests"])
def test_first_cell_enters_the_page_s_folder_from_anywhere_in_the_repository(start):
    cell = pair.first_cell(BOOK / "chapters/bits.md")
    place, library = run_cell(cell, ROOT / start, CSQ_REPOSITORY="/nowhere")
    assert place == BOOK / "chapters" and library.parent.name == "csq_mini"
    assert len(cell.splitlines()) <= 16 and facts.address() in cell


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_first_cell_alone_in_a_folder_clones_and_installs(tmp_path):
    origin, stub, here = (tmp_path / name for name in ("origin", "stub", "here"))
    for folder in (origin / "book/csq_book", origin / "csq_mini", stub / "pip", here):
        folder.mkdir(parents=True)
    (origin / "book/csq_book/__init__.py").touch()
    (origin / "csq_mini/__init__.py").touch()
    (stub / "pip/__init__.py").touch()
    (stub / "pip/__main__.py").write_text(
        "import sys; open('../../pip.txt', 'a').write(' '.join(sys.argv[1:]) + '\\n')"
    )
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-C", str(origin)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)

    cell, clone = pair.first_cell(BOOK / "page.md"), here / "csq-mini"
    for start in (here, clone, clone / "book"):  # -S: a Python without the installed csq_mini
        place, library = run_cell(cell, start, "-S", CSQ_REPOSITORY=str(origin), PYTHONPATH=str(stub))
        assert place == clone / "book" and library == clone / "csq_mini/__init__.py"
    asked = (here / "pip.txt").read_text().splitlines()[0].split()
    assert asked[0] == "install" and f"{clone}[notebook]" in asked
    assert not {"-U", "--upgrade", "--force-reinstall"} & set(asked)  # Colab keeps what it ships
    assert not re.search(r"[=<>~]=|<", " ".join(asked).replace(str(clone), ""))


@pytest.fixture(scope="session")
def origin(tmp_path_factory):
    if shutil.which("git") is None or subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("needs git, and a checkout")
    return try_colab.commit_files(tmp_path_factory.mktemp("colab") / "origin")


@pytest.mark.parametrize("page", TRIED)
def test_a_page_alone_in_a_fresh_environment_runs_as_in_colab(page, origin, tmp_path):
    try_colab.try_page(BOOK / f"{page}.md", tmp_path, origin)
