"""A book of one page with code, built with the real configuration, extensions and styles."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PAGE = """\
---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
jupytext:
  text_representation:
    extension: .md
    format_name: myst
---

# A page

Its integral, numbered:

```{math}
:label: eq-one

\\int_0^1 x \\, dx = \\tfrac12
```

```{code-cell} ipython3
:tags: [nbval-check-output]
print("value:", (root / "book/value.txt").read_text(), object())
```

```{code-cell} ipython3
import warnings
warnings.warn("its text names a file of this process")
```

```{code-cell} ipython3
---
mystnb:
  image: {alt: A blue square}
  figure: {caption: "The square of {eq}`eq-one`.", name: fig-square}
---
from IPython.display import SVG
SVG('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9" fill="blue"/></svg>')
```

{numref}`fig-square` is a square, and {cite:t}`csq` is cited.
"""
FAILING = PAGE.replace('print("value:"', 'print(1 / 0, "value:"')
INDEX = """\
# Tiny

{doc}`page` is all.

```bash
git clone {{ repository }}
```

{{ made }}

```{bibliography}
```
"""
TOC = """\
format: jb-book
root: book/index
parts:
- caption: A part
  numbered: 1
  chapters:
  - file: book/page
"""


def tiny_book(folder):
    """Write the book into ``folder``; its page has not been executed yet."""
    for part in ("_ext", "_static"):
        shutil.copytree(ROOT / "book" / part, folder / "book" / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("_config.yml", "CITATION.cff", "book/references.bib"):
        shutil.copy(ROOT / file, folder / file)
    (folder / "book/csq_book").mkdir()  # by which the first cell knows the book
    texts = {"_toc.yml": TOC, "book/index.md": INDEX, "book/page.md": PAGE, "book/value.txt": "first"}
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def build(folder):
    """`make book` in another folder."""
    program = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(folder)]
    return subprocess.run([*program, "--all", "-W", "-n", "--keep-going"], text=True, capture_output=True)


def built(folder):
    """As :func:`build`, for a build that must succeed; the page's HTML."""
    run = build(folder)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return (folder / "_build/html/book/page.html").read_text("utf8")
