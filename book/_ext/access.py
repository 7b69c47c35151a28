"""Sphinx extension: what Markdown cannot say to those who listen to a page.

Sphinx, docutils and MyST-NB write some names and roles wrongly; they are put right in the finished text of a page.
tests/test_browser.py has every page judged.
"""

import re

# A parameter a line: Sphinx makes a list of definitions with nothing defined.
SIGNATURE = re.compile(r'(<span class="sig-paren">\(</span>\s*)<dl>(.*?)</dl>(\s*<span class="sig-paren">\))', re.S)
NAMES = [
    # The fold of a cell shows a text of its own, so that is its name.
    ('<summary aria-label="Toggle hidden content">', "<summary>"),
    # A list has items; docutils gives its entries another role, now deprecated.
    (' role="doc-biblioentry"', ' role="listitem"'),
]


def put_right(body):
    """The HTML of a page's text, with names and roles mended."""
    body = SIGNATURE.sub(_as_lines, body)
    for wrong, right in NAMES:
        body = body.replace(wrong, right)
    return body


def _as_lines(match):
    lines = re.sub(r"<(/?)dd>", lambda tag: "</div>" if tag[1] else '<div class="sig-line">', match[2])
    return match[1] + lines.strip() + match[3]


def mend(app, pagename, templatename, context, doctree):
    if "body" in context:
        context["body"] = put_right(context["body"])


def setup(app):
    app.connect("html-page-context", mend)
    return {"parallel_read_safe": True}
