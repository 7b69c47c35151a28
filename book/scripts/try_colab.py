"""Opens pages the way Colab does, and runs them from top to bottom: ``python book/scripts/try_colab.py [pages]``.

Each page gets a fresh virtual environment, and an empty folder with nothing in it but the page's .ipynb. A clone of
the files that lie here stands for the repository's address, and the page's first cell must do the rest.
What Colab ships is not downloaded again (it takes gigabytes): it is lent by the environment that runs this, and
csq_mini is not among it. pip may not ask the network, so it can replace none of it either.
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
from importlib.metadata import distribution
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).parent))
from colab import address as repository  # noqa: E402
from pair import ROOT, find_pages  # noqa: E402

# pip and setuptools too: with them pip can install without the network
SHIPPED = ("torch torchvision numpy pandas matplotlib seaborn altair scikit-learn tqdm ipywidgets ipykernel "
           "pyyaml safetensors pip setuptools")  # fmt: skip
# What the chapter on exact models installs where it is missing: lent too, because installing would ask the network
FETCHED = "onnx onnxruntime onnxscript"
PROOF = "import csq_mini, importlib.metadata as m; print(csq_mini.__file__, m.distribution('csq-mini').locate_file(''))"


def chosen(pages, commit, count=2):
    """Two of the pages, others for each commit: a step from a start, both taken from its hash."""
    number = int(commit, 16)
    step = 1 + number // len(pages) % max(len(pages) - 1, 1)
    return sorted({pages[(number + k * step) % len(pages)] for k in range(count)})


def pages_of_this_commit():
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True, capture_output=True)
    return chosen(find_pages(), git.stdout.strip() if git.returncode == 0 else "0")


def with_requirements(names):
    """The packages and all that they need, extras included, as far as it is installed here."""
    found, waiting = {}, [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        key = re.sub(r"[-_.]+", "-", wanted.name).lower(), frozenset(wanted.extras)
        if key not in found:
            found[key] = distribution(wanted.name)
            for needed in map(Requirement, found[key].requires or []):
                extras = wanted.extras or {""}
                if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                    waiting.append(needed)
    return list({package.name: package for package in found.values()}.values())


def make_python(folder):
    """A fresh virtual environment that finds what Colab ships; the path of its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    shipped = folder / "shipped"  # a folder of its own: pip leaves alone what is not in the environment itself
    shipped.mkdir()
    for package in with_requirements([*SHIPPED.split(), *FETCHED.split()]):
        for part in {file.parts[0] for file in package.files if file.parts[0] not in ("..", "__pycache__")}:
            if not (shipped / part).exists():
                (shipped / part).symlink_to(package.locate_file(part))
    variables = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    site = Path(sysconfig.get_path("purelib", "venv", variables))
    (site / "shipped.pth").write_text(f"{shipped}\n")
    return folder / "venv/bin/python"


def commit_files(folder):
    """A repository of one commit with the files that lie here, whether they are committed or not."""
    listing = ["git", "ls-files", "-zco", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, text=True, capture_output=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    folder.mkdir(exist_ok=True)
    git = ["git", "-c", "user.name=n", "-c", "user.email=n@example.org", "-C", str(folder)]
    for command in (["init", "-q"], ["add", "--all"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    return folder


def outside(python, address):
    """The environment of a process that knows nothing of this one."""
    kept = {key: value for key, value in os.environ.items() if not re.match("PYTHON|VIRTUAL_ENV|PIP_|COV|CSQ", key)}
    path = f"{python.parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    alone = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return {**kept, **alone, "PATH": path, "CSQ_REPOSITORY": f"file://{address}", "TQDM_DISABLE": "1"}


def execute(nb, python, folder, environment):
    """Run a notebook with another Python, as Jupyter would."""
    kernel = AsyncKernelManager()
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel._kernel_spec = KernelSpec(argv=command, display_name="fresh", language="python")
    client = NotebookClient(nb, km=kernel, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)


def checked_outputs(nb):
    """What the cells print that must print the same everywhere."""
    cells = [cell for cell in nb.cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    return ["".join(o.get("text", "") for o in cell.outputs if o.get("name") != "stderr") for cell in cells]


def try_page(page, folder, address):
    """Run a page in ``folder``, an empty one; raises what goes wrong."""
    python, here = make_python(folder), folder / "content"
    here.mkdir()
    nb = nbformat.read(shutil.copy(page.with_suffix(".ipynb"), here), as_version=4)
    expected = checked_outputs(nb)
    nb.cells.append(nbformat.v4.new_code_cell(PROOF))
    execute(nb, python, here, outside(python, address))
    if checked_outputs(nb) != expected:
        raise ValueError("a cell tagged nbval-check-output printed something else")
    library, installed = nb.cells[-1].outputs[0].text.split()
    if Path(library) != here / repository().rsplit("/", 1)[-1] / "csq_mini/__init__.py":
        raise ValueError(f"csq_mini was imported from {library}, not from the clone")
    if folder / "venv" not in Path(installed).parents:
        raise ValueError(f"csq_mini was installed into {installed}, not by the first cell")


def attempt(page, folder, address):
    """Try a page and say how it went; whether it went well."""
    start = time.perf_counter()
    folder.mkdir()
    try:
        try_page(page, folder, address)
        said = f"{time.perf_counter() - start:.0f} s"
    except Exception as error:
        said = f"FAILED, {type(error).__name__}: {error}"
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{page.relative_to(ROOT)}: {said}", flush=True)
    return not said.startswith("FAILED")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="how many pages at a time")
    parser.add_argument("pages", nargs="*", type=Path, help="pages (.md); all notebooks of the book if none is named")
    options = parser.parse_args(argv)
    pages = [page.resolve() for page in options.pages] or find_pages()
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(options.jobs) as pool:
        place = Path(place).resolve()
        address = commit_files(place / "origin")
        went_well = [pool.submit(attempt, page, place / str(n), address) for n, page in enumerate(pages)]
        return 0 if all([job.result() for job in went_well]) else 1


if __name__ == "__main__":
    sys.exit(main())
