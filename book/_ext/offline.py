"""Sphinx extension: the built site asks nothing of another host.

Formulas are drawn by MathJax 3.2.2 and its fonts from the wheel sphinx-mathjax-offline, copied into
the site. (The wheel's own extension copies all of its 24 MB; we take TeX input and HTML output, and
what their menu and rarer macros load.) Thebe, which Jupyter Book loads always, is left out: its
script comes from another host, it stands on every page twice, and the book does not use it.
"""

import importlib.util
import shutil
from pathlib import Path

from sphinx.errors import ExtensionError

PARTS = ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions", "a11y", "ui",
         "sre/mathmaps/base.json", "sre/mathmaps/en.json")  # fmt: skip


def use_local_mathjax(app, config):
    config.mathjax_path = "mathjax/tex-chtml.js"


def copy_mathjax(app):
    wheel = importlib.util.find_spec("sphinx-mathjax-offline")
    if wheel is None:
        raise ExtensionError('MathJax is missing: run pip install -e ".[book]"')
    source = Path(wheel.origin).parent / "static" / "mathjax"
    for part in PARTS:
        target = Path(app.outdir) / "_static" / "mathjax" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source / part, target)


def leave_out_thebe(app, config):
    for listeners in app.events.listeners.values():
        for listener in list(listeners):
            if listener.handler.__module__ == "sphinx_thebe":
                app.disconnect(listener.id)
    app.registry.css_files = [file for file in app.registry.css_files if "thebe" not in file[0]]


def setup(app):
    app.connect("config-inited", use_local_mathjax)
    app.connect("config-inited", leave_out_thebe)
    app.connect("builder-inited", copy_mathjax)
    return {"parallel_read_safe": True}
