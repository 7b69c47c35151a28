"""The first cell of every notebook page, and the repository's address in the text of the pages.

The address stands in _config.yml alone. The first cell is made from it by :func:`first_cell` and
kept in step by pair.py. As a Sphinx extension this file puts the address wherever a page writes
``{{ repository }}``, code blocks included.
"""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
TAGS = "[remove-cell, setup]"  # not on the built page; "setup" is how pair.py finds the cell

# Environment variable CSQ_REPOSITORY: another place to clone from, such as a local folder in a test.
CELL = """\
# Gets the book and the library where they are missing (as in Colab), then enters {folder}/.
import importlib.util, os, pathlib, subprocess, sys

here = pathlib.Path.cwd()
places = [here, *here.parents, here / "{name}"]
root = next((p for p in places if (p / "book/_ext/colab.py").exists()), places[-1])
if not root.exists():
    address = os.environ.get("CSQ_REPOSITORY", "{address}")
    subprocess.run(["git", "clone", "--quiet", "--depth=1", address, root], check=True)
os.chdir(root / "{folder}")
if importlib.util.find_spec("csq_mini") is None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--editable", f"{{root}}[notebook]"], check=True)
    sys.path.append(str(root))"""


def address(root=ROOT):
    """The repository's address, from _config.yml."""
    return yaml.safe_load((root / "_config.yml").read_text("utf8"))["repository"]["url"].rstrip("/")


def first_cell(page, root=ROOT):
    """Source of the first code cell of ``page``, a path below ``root``."""
    folder = page.resolve().parent.relative_to(root.resolve()).as_posix()
    return CELL.format(folder=folder, address=address(root), name=address(root).rsplit("/", 1)[-1])


def fill_address(app, docname, source):
    source[0] = source[0].replace("{{ repository }}", address(Path(app.srcdir)))


def setup(app):
    app.connect("source-read", fill_address)
    return {"parallel_read_safe": True}
