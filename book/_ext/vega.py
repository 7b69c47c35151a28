"""Sphinx extension: the site serves the scripts of its charts, and only pages with charts load them.

csq_book.charts makes the charts. Vega, Vega-Lite and their embedding come as one bundle from the wheel
vl-convert-python (0.9 MB). The scripts are deferred: a page shows its text and the pictures of its charts first.
What a chart carries for notebooks, which load the scripts from the network, is taken away here.
"""

import re
from pathlib import Path

from docutils import nodes
from sphinx.errors import ExtensionError

FOR_NOTEBOOKS = re.compile(r"<!-- notebook -->.*?<!-- /notebook -->", re.S)
FILES = ("vega.js", "charts.js", "charts.css")
START = """\
(async () => {
  for (const box of document.querySelectorAll(".csq-chart")) {
    try { await csqDraw(box); } catch (error) { console.error(box.id, error); }
    // the drawing is one picture with one name, not a heap of nameless marks
    box.querySelectorAll(".csq-view svg > *").forEach((part) => part.setAttribute("aria-hidden", "true"));
    await new Promise((next) => setTimeout(next));  // the reader comes first
  }
})();
"""


def charts_of(doctree):
    """The raw HTML of the charts on a page."""
    return [node for node in doctree.findall(nodes.raw) if 'class="csq-chart"' in node.astext()]


def take_away_what_notebooks_need(app, doctree):
    for node in charts_of(doctree):
        node.rawsource = text = FOR_NOTEBOOKS.sub("", node.astext())
        node.children = [nodes.Text(text)]


def write_files(folder):
    """The bundle, what draws the charts, and their style, unless this build wrote them already."""
    try:
        import vl_convert

        from csq_book import charts
    except ImportError as error:
        raise ExtensionError(f'{error}: run pip install -e ".[book]"') from error
    bundle = "(() => {" + vl_convert.javascript_bundle() + "})();\n"  # else its short names would be everybody's
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(FILES, (bundle, charts.SCRIPT + START, charts.STYLE)):
        (folder / name).write_text(text, "utf8")


def load_scripts(app, pagename, templatename, context, doctree):
    if doctree is None or not charts_of(doctree):
        return
    if not getattr(app, "csq_charts", False):
        write_files(Path(app.outdir) / "_static" / "charts")
        app.csq_charts = True
    for name in FILES[:2]:
        app.add_js_file(f"charts/{name}", loading_method="defer")
    app.add_css_file(f"charts/{FILES[2]}")


def setup(app):
    app.connect("doctree-read", take_away_what_notebooks_need)
    app.connect("html-page-context", load_scripts)
    return {"parallel_read_safe": True}
