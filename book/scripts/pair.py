"""Keeps the notebook beside each page in step with it: ``python book/scripts/pair.py [--jobs N] [pages]``.

A page that is a notebook (its header names a kernel) is written as text, ``book/page.md``, and paired with
``book/page.ipynb``, which Colab opens. Its outputs are the only ones: the site and the PDF show them, and nbval repeats
them. The way is one way, .md to .ipynb:

1. the page's first cell is renewed (in the .md, after the title),
2. the notebook is made from the .md, its text in plain Markdown (plain.py),
3. it is executed in the page's own folder if its code has changed, or anything that the code uses (sources.py);
   else it keeps its outputs,
4. the .ipynb is written, without what differs between machines.

Pages that are named are executed in any case; all pages of the book are looked at if none is named.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "_ext"))
import plain
from facts import ROOT, address
from labels import HEADER, read_book
from sources import digest
from stored import code_cells, read_stored, take_outputs

MYST = {"extension": ".md", "format_name": "myst"}
SETUP = re.compile(r"^```\{code-cell\}[^\n]*\n:tags: \[[^\]\n]*\bsetup\b[^\]\n]*\]\n.*?^```\n", re.S | re.M)
TITLE = re.compile(r"^# [^\n]+\n", re.M)
ONE_CELL = 3600  # seconds; only a cell that hangs takes so long

# The first cell of every page. CSQ_REPOSITORY: another place to clone from, such as a local folder in a test.
FIRST_CELL = """\
# Gets the book and the library where they are missing (as in Colab), then enters {folder}/.
import importlib.util, os, pathlib, subprocess, sys

here = pathlib.Path.cwd()
places = [here, *here.parents, here / "{name}"]
root = next((p for p in places if (p / "book/csq_book").exists()), places[-1])
if not root.exists():
    address = os.environ.get("CSQ_REPOSITORY", "{address}")
    subprocess.run(["git", "clone", "--quiet", "--depth=1", address, root], check=True)
os.chdir(root / "{folder}")
if importlib.util.find_spec("csq_mini") is None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--editable", f"{{root}}[notebook]"], check=True)
    sys.path += [str(root), str(root / "book")]"""


def find_pages(root=ROOT):
    """All .md files under book/ that are notebooks."""
    pages = sorted((root / "book").glob("**/*.md"))
    return [page for page in pages if is_notebook(page.read_text("utf8"))]


def is_notebook(text):
    header = HEADER.match(text)
    return bool(header and re.search(r"^kernelspec:", header[1], re.M))


def first_cell(page, root=ROOT):
    """Source of the first code cell of ``page``, a path below ``root``."""
    folder = page.resolve().parent.relative_to(root.resolve()).as_posix()
    return FIRST_CELL.format(folder=folder, address=address(root), name=address(root).rsplit("/", 1)[-1])


def with_first_cell(text, page, root=ROOT):
    """The page's text with its first cell as it has to be."""
    cell = f"```{{code-cell}} ipython3\n:tags: [remove-cell, setup]\n{first_cell(page, root)}\n```\n"
    if SETUP.search(text):
        return SETUP.sub(lambda _: cell, text, count=1)
    title = TITLE.search(text, HEADER.match(text).end())
    if title is None:
        raise ValueError(f"{page}: a page needs a title, '# ...', before its first cell")
    return f"{text[: title.end()]}\n{cell}{text[title.end() :]}"


def notebook(text, page, root=ROOT):
    """The notebook a page's text stands for, without outputs; ids depend on the cells alone."""
    nb = jupytext.reads(text, fmt=MYST)
    nb.metadata.pop("jupytext", None)  # else JupyterLab would pair the two the other way round too
    nb.metadata["language_info"] = {"name": "python"}
    nb.nbformat, nb.nbformat_minor = 4, 5
    nb.cells = plain.render_cells(nb.cells, page.resolve(), read_book(root), nbformat.v4.new_markdown_cell)
    seen = set()
    for cell in nb.cells:
        count = 0
        while (name := _hash(cell.cell_type, cell.source, count)) in seen:
            count += 1
        seen.add(name)
        cell.id = name
    return nb


def _hash(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def used_by(nb, root):
    """The digest of all that the page's own cells use; the first cell is the same everywhere."""
    cells = [cell.source for cell in code_cells(nb) if "setup" not in cell.metadata.get("tags", [])]
    return digest("\n".join(cells), root)


def execute(nb, page, root):
    """Run the notebook in the page's folder; keep its outputs, what they were made from, where, and in what time."""
    from nbclient import NotebookClient  # checks do without

    start, used = time.perf_counter(), used_by(nb, root)
    resources = {"metadata": {"path": str(page.parent)}}
    client = NotebookClient(nb, timeout=ONE_CELL, record_timing=False, coalesce_streams=True, resources=resources)
    env = {**os.environ, "TQDM_DISABLE": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    client.execute(env=env, stderr=subprocess.DEVNULL)  # a kernel's warnings about itself; those of cells are outputs
    nb.metadata["csq"] = {"sources": used, "seconds": round(time.perf_counter() - start, 1), "where": where()}
    scrub(nb, root)


def where():
    """What outputs may depend on beside code: versions and processor."""
    from csq_mini.experiments import rows

    here = rows.where("cpu")
    packages = "csq-mini {csq_mini}, torch {torch}, Python {python}".format(**here["versions"])
    return f"{packages}, on one thread of {here['hardware']['cpu']}"


def scrub(nb, root=ROOT):
    """Remove what differs between machines and runs (versions, times, warnings, places), and what nobody sees."""
    nb.metadata["language_info"] = {"name": "python"}
    for cell in code_cells(nb):
        cell.metadata.pop("execution", None)
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "text" in output:
                output["text"] = without_places(output["text"], root)
            for kind, value in output.get("data", {}).items():
                if kind.startswith("text/"):
                    output["data"][kind] = without_places(value, root)
                elif kind == "image/svg+xml":
                    output["data"][kind] = slim(value)


def without_places(text, root):
    for place, name in {str(root): ".", sys.prefix: "<python>", str(Path.home()): "~"}.items():
        text = text.replace(place, name)
    return re.sub(r"\b0x[0-9a-f]{6,}\b", "0x...", text)


def slim(svg):
    """The same picture in fewer bytes."""
    from scour import scour

    options = scour.sanitizeOptions()
    options.digits, options.newlines, options.indent_type = 5, False, "none"
    options.strip_comments = options.remove_metadata = options.strip_ids = options.strip_xml_prolog = True
    # ids stay its own: some readers put all pictures of a notebook into one document
    options.shorten_ids, options.shorten_ids_prefix = True, f"n{_hash(svg)[:4]}"
    return re.sub(r"<!DOCTYPE[^>]*>\s*", "", scour.scourString(svg, options))


def renew(page, root=ROOT, always=False):
    """Bring a page's first cell and its notebook up to date; what was done, in a few words, or None."""
    start, old = time.perf_counter(), page.read_text("utf8")
    text, stored = with_first_cell(old, page, root), read_stored(page)
    nb, known = notebook(text, page, root), stored.metadata.get("csq", {})
    if always or not take_outputs(nb, stored) or known.get("sources") != used_by(nb, root):
        execute(nb, page, root)
        done = f"executed in {time.perf_counter() - start:.0f} s"
    else:
        nb.metadata["csq"] = known
        done = "its text renewed" if nb != stored or text != old else None
    nbformat.validate(nb)
    if done:
        write(page, text)
        write(page.with_suffix(".ipynb"), nbformat.writes(nb) + "\n")
    return done


def write(path, text):
    from csq_mini.files import write_whole

    if not path.exists() or path.read_text("utf8") != text:
        write_whole(path, lambda file: file.write(text.encode()))


def check(page, root=ROOT):
    """What is out of step between a page and its notebook, in one phrase; None if nothing is.

    Whether the library has changed since is for nbval to find out, which compares outputs.
    """
    text, path = page.read_text("utf8"), page.with_suffix(".ipynb")
    if with_first_cell(text, page, root) != text:
        return "its first cell is not the one that pair.py writes"
    if not path.exists():
        return f"there is no {path.name}"
    nb, stored = notebook(text, page, root), read_stored(page)
    if code_cells(nb)[0].source != first_cell(page, root):
        return "a code cell stands before the first cell"
    if not take_outputs(nb, stored):
        return f"{path.name} has other code: make notebooks"
    nb.metadata["csq"] = stored.metadata.get("csq")
    if nb != stored:
        return f"{path.name} has other text, settings or tags: make notebooks"
    if any(cell.execution_count is None for cell in code_cells(nb)) or not any(c.outputs for c in code_cells(nb)):
        return f"{path.name} holds no outputs"
    return None


def attempt(page, root, always):
    """Renew a page and say how it went; whether it went well."""
    try:
        done = renew(page, root, always)
    except Exception as error:
        print(f"{page.relative_to(root)}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return False
    if done:
        print(f"{page.relative_to(root)}: {done}", flush=True)
    return True


def main(argv=None, root=ROOT):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="how many pages at a time")
    parser.add_argument("pages", nargs="*", type=Path, help="pages (.md) to execute in any case")
    options = parser.parse_args(argv)
    known = find_pages(root)
    named = [page.resolve() for page in options.pages]
    for page in named:
        if page not in known:
            parser.error(f"{page} is no notebook page (.md) of this book")
    with ThreadPoolExecutor(options.jobs) as pool:  # threads do: each only waits for its kernel
        went_well = list(pool.map(lambda page: attempt(page, root, bool(named)), named or known))
    return 0 if all(went_well) else 1


if __name__ == "__main__":
    sys.exit(main())
