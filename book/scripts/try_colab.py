"""Opens pages the way Colab does, and runs them from top to bottom: ``python book/scripts/try_colab.py [pages]``.

Each page gets a fresh virtual environment and an empty folder with nothing in it but the page's .ipynb. A clone of the
files that lie here stands for the repository's address, and the page's first cell must do the rest.
What Colab ships is not downloaded again (it takes gigabytes): the environment that runs this lends its packages, all
but csq-mini. pip may not ask the network, so it can replace none of them.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "_ext"))
from facts import ROOT, address
from pair import ONE_CELL, find_pages

# What builds and tests the book: a reader does not have it.
OURS_ALONE = "vl_convert jupyter_book jupytext papermill pypandoc scour typst pytest hypothesis nbval".split()
PROOF = "import csq_mini, importlib.metadata as m; print(csq_mini.__file__, m.distribution('csq-mini').locate_file(''))"


def make_python(folder):
    """A fresh virtual environment that finds the packages of this one, but not csq-mini; the path of its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
    lent = [path for path in sys.path if path.endswith("site-packages")]  # csq-mini lies in none: make installs a link
    Path(site, "lent.pth").write_text("".join(f"{path}\n" for path in lent))
    Path(site, "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({OURS_ALONE}))\n")
    return folder / "bin/python"


def commit_files(folder):
    """A repository of one commit with the files that lie here, whether they are committed or not."""
    listing = ["git", "ls-files", "-zco", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, text=True, capture_output=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git = ["git", "-c", "user.name=n", "-c", "user.email=n@example.org", "-C", str(folder)]
    for command in (["init", "-q"], ["add", "--all"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    return folder


def outside(python, origin):
    """The environment of a process that knows nothing of this one."""
    kept = {key: value for key, value in os.environ.items() if not re.match("PYTHON|VIRTUAL_ENV|PIP_|COV|CSQ", key)}
    path = f"{python.parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    alone = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return {**kept, **alone, "PATH": path, "CSQ_REPOSITORY": f"file://{origin}", "TQDM_DISABLE": "1"}


def execute(nb, python, folder, environment):
    """Run a notebook with another Python, as Jupyter would."""
    kernel = AsyncKernelManager()
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel._kernel_spec = KernelSpec(argv=command, display_name="fresh", language="python")
    client = NotebookClient(nb, km=kernel, timeout=ONE_CELL, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)


def checked_outputs(nb):
    """What the cells print that must print the same everywhere."""
    cells = [cell for cell in nb.cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    return ["".join(o.get("text", "") for o in cell.outputs if o.get("name") != "stderr") for cell in cells]


def try_page(page, folder, origin):
    """Run a page in ``folder``, an empty one; raises what goes wrong."""
    python, here = make_python(folder / "venv"), folder / "content"
    here.mkdir()
    nb = nbformat.read(shutil.copy(page.with_suffix(".ipynb"), here), as_version=4)
    expected = checked_outputs(nb)
    nb.cells.append(nbformat.v4.new_code_cell(PROOF))
    execute(nb, python, here, outside(python, origin))
    if checked_outputs(nb) != expected:
        raise ValueError("a cell tagged nbval-check-output printed something else")
    library, installed = nb.cells[-1].outputs[0].text.split()
    if Path(library) != here / address().rsplit("/", 1)[-1] / "csq_mini/__init__.py":
        raise ValueError(f"csq_mini was imported from {library}, not from the clone")
    if folder / "venv" not in Path(installed).parents:
        raise ValueError(f"csq_mini was installed into {installed}, not by the first cell")


def attempt(page, folder, origin):
    """Try a page and say how it went; whether it went well."""
    start, problem = time.perf_counter(), None
    folder.mkdir()
    try:
        try_page(page, folder, origin)
    except Exception as error:
        problem = f"FAILED, {type(error).__name__}: {error}"
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{page.relative_to(ROOT)}: {problem or f'{time.perf_counter() - start:.0f} s'}", flush=True)
    return problem is None


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="how many pages at a time")
    parser.add_argument("pages", nargs="*", type=Path, help="pages (.md); all notebooks of the book if none is named")
    options = parser.parse_args(argv)
    pages = [page.resolve() for page in options.pages] or find_pages()
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(options.jobs) as pool:
        place = Path(place).resolve()
        origin = commit_files(place / "origin")
        went_well = [pool.submit(attempt, page, place / str(n), origin) for n, page in enumerate(pages)]
        return 0 if all([job.result() for job in went_well]) else 1


if __name__ == "__main__":
    sys.exit(main())
