"""Keeps the notebook beside each page in step with it: ``python book/scripts/pair.py [--check] [pages]``.

A page that is a notebook (its header names a kernel) is written as text, ``book/page.md``, and paired
with ``book/page.ipynb``, which Colab opens and nbval tests. The way is one way, .md to .ipynb:

1. the page's first cell is renewed from the template in colab.py (in the .md, after the title),
2. the notebook is made from the .md, its text in plain Markdown (plain.py), and executed in the page's own folder,
3. the .ipynb is written with its outputs, without what differs between machines.

With --text nothing is executed: where a page's code is the one that its notebook holds, the outputs are kept and only
the text is renewed. Numbers of figures and links to other pages change with those pages, so this is often enough.
With --check nothing is written or executed: exit code 1 names each page whose pair is out of step.
"""

import argparse
import hashlib
import os
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat

sys.path.insert(0, str(Path(__file__).parent))
import plain  # noqa: E402
from colab import ROOT, TAGS, first_cell  # noqa: E402
from labels import HEADER, read_book  # noqa: E402

MYST = {"extension": ".md", "format_name": "myst"}
SETUP = re.compile(r"^```\{code-cell\}[^\n]*\n:tags: \[[^\]\n]*\bsetup\b[^\]\n]*\]\n.*?^```\n", re.S | re.M)
TITLE = re.compile(r"^# [^\n]+\n", re.M)


def find_pages(root=ROOT):
    """All .md files under book/ that are notebooks."""
    pages = sorted((root / "book").glob("**/*.md"))
    return [page for page in pages if is_notebook(page.read_text("utf8"))]


def is_notebook(text):
    header = HEADER.match(text)
    return bool(header and re.search(r"^kernelspec:", header[1], re.M))


def with_first_cell(text, page, root=ROOT):
    """The page's text with its first cell as the template wants it."""
    cell = f"```{{code-cell}} ipython3\n:tags: {TAGS}\n{first_cell(page, root)}\n```\n"
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
    nb.nbformat, nb.nbformat_minor = 4, 5
    nb.cells = plain.render_cells(nb.cells, page.resolve(), read_book(root), nbformat.v4.new_markdown_cell)
    seen = set()
    for cell in nb.cells:
        count = 0
        while (name := _digest(cell.cell_type, cell.source, count)) in seen:
            count += 1
        seen.add(name)
        cell.id = name
    return nb


def _digest(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def execute(nb, folder):
    """Run the notebook in ``folder`` and keep its outputs."""
    from nbclient import NotebookClient  # --check does without

    os.environ |= {"TQDM_DISABLE": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(nb, timeout=300, record_timing=False, coalesce_streams=True, resources=resources).execute()


def scrub(nb, root=ROOT):
    """Remove what differs between machines and runs: versions, times, warnings, paths and addresses."""
    nb.metadata["language_info"] = {"name": "python"}
    places = {str(root): ".", sys.prefix: "<python>", str(Path.home()): "~"}

    def clean(value):
        if isinstance(value, list):
            return [clean(v) for v in value]
        for place, name in places.items():
            value = value.replace(place, name)
        return re.sub(r"\b0x[0-9a-f]{6,}\b", "0x...", value)

    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            if "text" in output:
                output["text"] = clean(output["text"])
            for kind, value in output.get("data", {}).items():
                if kind.startswith("text/"):
                    output["data"][kind] = clean(value)
    return nb


def write(path, text):
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, "utf8")
    os.replace(temporary, path)


def keep_outputs(nb, path):
    """Take the outputs of the notebook that is there, if it has the same code."""
    kept = nbformat.read(path, as_version=4) if path.exists() else nbformat.v4.new_notebook()
    old, new = ([cell for cell in each.cells if cell.cell_type == "code"] for each in (kept, nb))
    if [cell.source for cell in old] != [cell.source for cell in new]:
        raise ValueError("its code has changed, so it must be executed: without --text")
    for before, cell in zip(old, new):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count


def make(page, root=ROOT, text_alone=False):
    """Renew a page's first cell and write its executed notebook."""
    old = page.read_text("utf8")
    text = with_first_cell(old, page, root)
    nb = notebook(text, page, root)
    if text_alone:
        keep_outputs(nb, page.with_suffix(".ipynb"))
    else:
        execute(nb, page.parent)
    nbformat.validate(scrub(nb, root))
    if text != old:
        write(page, text)
    write(page.with_suffix(".ipynb"), nbformat.writes(nb) + "\n")


def check(page, root=ROOT):
    """What is out of step between a page and its notebook, in one phrase; None if nothing is."""
    text, path = page.read_text("utf8"), page.with_suffix(".ipynb")
    if with_first_cell(text, page, root) != text:
        return "its first cell is not the template's"
    if not path.exists():
        return f"there is no {path.name}"
    made, kept = notebook(text, page, root), nbformat.read(path, as_version=4)
    if [c for c in made.cells if c.cell_type == "code"][0].source != first_cell(page, root):
        return "a code cell stands before the first cell"
    if [(c.id, c.source) for c in made.cells] != [(c.get("id"), c.source) for c in kept.cells]:
        return f"{path.name} has other cells"
    if [c.metadata for c in made.cells] != [c.metadata for c in kept.cells]:
        return f"{path.name} has other tags or cell settings"
    if {**made.metadata, "language_info": None} != {**kept.metadata, "language_info": None}:
        return f"{path.name} has another header"
    code = [c for c in kept.cells if c.cell_type == "code"]
    if any(c.execution_count is None for c in code) or not any(c.outputs for c in code):
        return f"{path.name} holds no outputs"
    return None


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only report pages that are out of step")
    parser.add_argument("--text", action="store_true", help="renew the text alone, execute nothing")
    parser.add_argument("pages", nargs="*", type=Path, help="pages (.md); all notebooks of the book if none is named")
    options = parser.parse_args(argv)
    wrong, known = [], find_pages()
    chosen = [page.resolve() for page in options.pages] or known
    for page in chosen:
        if page not in known:
            parser.error(f"{page} is no notebook page (.md) of this book")
    for page in chosen:
        start, name = time.perf_counter(), page.relative_to(ROOT)
        try:
            problem = check(page) if options.check else make(page, text_alone=options.text)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            wrong.append(name)
            print(f"{name}: {problem}", file=sys.stderr)
        elif not options.check:
            print(f"{name}: written in {time.perf_counter() - start:.0f} s")
    if wrong and options.check:
        print("run: make notebooks", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
