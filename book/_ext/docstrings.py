"""Sphinx extension: docstrings are written for ``help()``; here they become pages."""

import re

from sphinx.util.nodes import make_refnode

PACKAGES = ("csq_mini.", "csq_book.")


def readable(app, what, name, obj, options, lines):
    """What reStructuredText would misread. (The rest of Google's style is napoleon's, see _config.yml.)"""
    if what in ("property", "attribute", "data"):
        lines[:0] = ["..", ""]  # else the start of "Whether: ..." would be a type
    for number, line in enumerate(lines):
        # a bar, as in |W|, is no markup; another sign of its width keeps tables whole
        parts = re.split(r"(``.*?``)", line)
        lines[number] = "".join(part if part.startswith("``") else part.replace("|", "\u2223") for part in parts)


def near(app, env, node, contnode):
    """The target of a name that a docstring says without its module, if there is exactly one."""
    if node.get("refdomain") != "py":
        return None
    found = {entry.node_id: (full, entry) for full, entry in env.get_domain("py").objects.items()
             if full.startswith(PACKAGES) and full.endswith(f".{node['reftarget']}") and not entry.aliased}  # fmt: skip
    if len(found) != 1:
        return None
    [(full, entry)] = found.values()
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, full)


def setup(app):
    app.connect("autodoc-process-docstring", readable, priority=400)  # napoleon has 500
    app.connect("missing-reference", near)
    return {"parallel_read_safe": True}
