"""Sphinx extension: what the appendices take from the repository while the book is built.

A page writes one of these on a line of its own, and gets Markdown made from the file that knows it:

``{{ commands }}``      the command ``csq-mini`` with all its options, from its parser
``{{ bibtex paper }}``  BibTeX of the paper (references.bib), ``book`` or ``software`` (CITATION.cff, _config.yml)
``{{ citation }}``      a box that says how to cite this book
``{{ machine }}``       versions, commit and processor of this build
``{{ times }}``         what each page took when it was executed

It also helps autodoc: docstrings are written for ``help()``, and here they become pages.
"""

import argparse
import importlib.metadata
import re
import textwrap
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

ENTRY = r"^@\w+\{%s,\n.*?^\}$"
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "scikit-learn", "matplotlib", "seaborn", "jupyter-book",
            "sphinx", "myst-nb")  # fmt: skip


def fill(text, root):
    """A page's text with every placeholder filled in; names of unknown ones are an error."""
    made = {"commands": commands, "bibtex": bibtex, "citation": citation, "machine": machine, "times": times}

    def one(match):
        name, *arguments = match[1].split()
        return made[name](root, *arguments) if name in made else match[0]

    return re.sub(r"^\{\{ ([\w ]+) \}\}$", one, text, flags=re.M)


# The command


def commands(root):
    """A section for each command, its options as a list of definitions."""
    from csq_mini.cli import parser

    top = parser()
    choices = next(action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    about = {action.dest: action.help for action in choices._choices_actions}
    return "\n\n".join(_command(name, about[name], command) for name, command in choices.choices.items())


def _command(name, about, command):
    options = [action for action in command._actions if action.dest != "help"]
    entries = [f"{', '.join(_forms(action))}\n: {_sentence(_escaped(_help(action)))}" for action in options]
    return "\n\n".join([f"### `csq-mini {name}`", _sentence(_escaped(about)), *entries])


def _forms(action):
    value = action.metavar or (action.dest.upper() if action.option_strings and action.nargs != 0 else action.dest)
    if not action.option_strings:
        return [f"`{value}`"]
    return [f"`{option}`" if action.nargs == 0 else f"`{option} {value}`" for option in action.option_strings]


def _help(action):
    text = action.help or action.dest.replace("_", " ")
    return f"{text}; one of {', '.join(action.choices)}" if action.choices else text


def _sentence(text):
    listed = re.match(r"\w+: ", text)  # "smoke: ...; cpu: ..." begins with a name
    return (text if listed else text[0].upper() + text[1:]).rstrip(".") + "."


def _escaped(text):
    return re.sub(r"([\\*_`<>\[\]{}|$#])", r"\\\1", text)


# How to cite


def bibtex(root, what):
    """A BibTeX entry in a code block."""
    made = {"paper": _paper_bibtex, "book": _book_bibtex, "software": _software_bibtex}[what](root)
    lines = [textwrap.fill(line, 72, subsequent_indent=" " * 6) for line in made.splitlines()]
    return "\n".join(["```bibtex", *lines, "```"])


def _paper_bibtex(root, key="csq"):
    text = (root / "book/references.bib").read_text("utf8")
    return re.search(ENTRY % key, text, re.S | re.M)[0]


def _book_bibtex(root):
    config, cff = _yaml(root / "_config.yml"), _yaml(root / "CITATION.cff")
    note = f"Version {cff['version']}, an executable book"
    return _entry("csq_book", config, config["title"], f"{{{config['author']}}}", note)


def _software_bibtex(root):
    config, cff = _yaml(root / "_config.yml"), _yaml(root / "CITATION.cff")
    title = f"{cff['title']}: {cff['abstract'].partition(',')[0]}"
    people = [f"{{{p['name']}}}" if "name" in p else f"{p['family-names']}, {p['given-names']}" for p in cff["authors"]]
    return _entry("csq_mini", config, title, " and ".join(people), f"Version {cff['version']}")


def _entry(key, config, title, author, note):
    fields = {"title": title, "author": author, "year": config["copyright"], "url": config["repository"]["url"],
              "note": note}  # fmt: skip
    lines = [f"  {name:6} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@misc{{{key},", *lines, "}"])


def citation(root):
    """The box at the foot of the first page."""
    config, cff = _yaml(root / "_config.yml"), _yaml(root / "CITATION.cff")
    who = f"{config['author']} ({config['copyright']}). *{config['title']}*. Version {cff['version']}."
    return (":::{admonition} To cite this book\n:class: tip\n\n"
            f"{who} {config['repository']['url']}\n\n"
            "The method is that of {cite:t}`csq`; please cite the paper first. "
            "{doc}`/book/cite` has BibTeX.\n:::")  # fmt: skip


def _yaml(file):
    return yaml.safe_load(file.read_text("utf8"))


# The state of this build


def machine(root):
    """Versions, commit and processor, as a list of definitions."""
    from libhash import library_hash

    from csq_mini.experiments.reproduce import machine as here

    versions, hardware = here.versions(), here.hardware("cpu")
    packages = [f"{name} {version}" for name in PACKAGES if (version := _version(name))]
    lines = {
        "Library": f"csq-mini {versions['csq_mini']}, commit `{here.commit() or 'unknown'}`"
        + " (the sign + means changed since)" * bool((here.commit() or "").endswith("+")),
        "What pages read": f"library, results and lists of data sets with the digest `{library_hash(root)}`",
        "Python": versions["python"],
        "Packages": ", ".join(packages),
        "Processor": f"{hardware['cpu']}, {hardware['threads']} thread" + "s" * (hardware["threads"] != 1),
    }
    return "\n\n".join(f"{name}\n: {text}" for name, text in lines.items())


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def times(root):
    """A directive: run times are known only after all pages are read."""
    return "```{page-times}\n```"


class page_times(nodes.General, nodes.Element):
    """Where the table of run times will stand."""


class PageTimes(SphinxDirective):
    def run(self):
        from myst_nb.sphinx_ import NbMetadataCollector

        # As {nb-exec-table} does: an executed page renews this one.
        NbMetadataCollector.set_doc_data(self.env, self.env.docname, "has_exec_table", True)
        return [page_times()]


class PageTimesTable(SphinxPostTransform):
    """Replaces the mark by a table, after all pages were executed."""

    default_priority = 8  # before references are resolved

    def run(self, **kwargs):
        for mark in list(self.document.findall(page_times)):
            mark.replace_self(self.table())

    def table(self):
        found = [(page, data["exec_data"]) for page, data in self.pages() if data.get("exec_data")]
        known = [data["runtime"] for _, data in found if data["runtime"] is not None]
        rows = [(self.link(page), _seconds(data["runtime"])) for page, data in found]
        rows.append((nodes.strong(text=f"all pages with code: {len(found)}"), _seconds(sum(known))))
        return _table([("page", "seconds"), *rows])

    def pages(self):
        """In the order of the book."""
        order, data = _order(self.env), getattr(self.env, "nb_metadata", {})
        return sorted(data.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))

    def link(self, page):
        title = self.env.titles[page].astext()
        return make_refnode(self.app.builder, self.env.docname, page, "", nodes.inline(text=title))


def _order(env):
    """Pages by number, from the first page of the book on."""
    order = {}

    def visit(page):
        if page not in order:
            order[page] = len(order)
            for child in env.toctree_includes.get(page, []):
                visit(child)

    visit(env.config.root_doc)
    return order


def _seconds(value):
    return nodes.Text("not known" if value is None else f"{value:.1f}")


def _table(rows):
    table, group = nodes.table(classes=["colwidths-auto"]), nodes.tgroup(cols=2)
    head, body = nodes.thead(), nodes.tbody()
    for number, row in enumerate(rows):
        cells = [cell if isinstance(cell, nodes.Node) else nodes.Text(cell) for cell in row]
        line = nodes.row("", *[nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells])
        (body if number else head).append(line)
    group += [*(nodes.colspec(colwidth=50) for _ in range(2)), head, body]
    table += group
    return table


# Docstrings as pages


def readable(app, what, name, obj, options, lines):
    """Before napoleon reads a docstring: what it, or reStructuredText, would take for something else."""
    if what in ("property", "attribute"):
        lines[:0] = ["..", ""]  # else "Whether: ..." in its first line would be a type
    lines[:] = _returns(_attributes(lines))
    for number, line in enumerate(lines):  # a bar, as in |W|, is no markup; another one of its width keeps tables whole
        parts = re.split(r"(``.*?``)", line)
        lines[number] = "".join(part if part.startswith("``") else part.replace("|", "\u2223") for part in parts)


def _attributes(lines):
    """A section "Attributes:", which may have several names in a line, as a list of definitions."""
    made, inside = [], False
    for line in lines:
        if line.strip() == "Attributes:":
            inside = True
            made += ["**Attributes**", ""]
        elif inside and line.strip() and not line.startswith(" "):
            inside = False
            made += [line]
        elif inside and (entry := re.match(r" {4}([\w, ]+): (.*)", line)):
            names = ", ".join(f"``{name}``" for name in entry[1].split(", "))
            made += ["", names, f"   {entry[2]}"]
        else:
            made += [f"   {line.strip()}" if inside and line.strip() else line]
    return made


def _returns(lines):
    """A section "Returns:" as a field; napoleon would take what stands before a colon for a type."""
    made, field = [], None
    for line in lines:
        if line in ("Returns:", "Yields:"):
            field = f":{line.lower()}" if line == "Returns:" else ":Yields:"
        elif field and line.strip():
            made.append(f"{field} {line.strip()}")
            field = None
        else:
            made.append(line)
    return made


def near(app, env, node, contnode):
    """A name that a docstring says without its module, if the book's pages have one of that name."""
    if node.get("refdomain") != "py" or "." in node["reftarget"]:
        return None
    objects = env.get_domain("py").objects
    found = [(name, entry) for name, entry in objects.items() if name.rpartition(".")[2] == node["reftarget"]
             and name.startswith("csq_mini") and not entry.aliased]  # fmt: skip
    if len({entry.node_id for _, entry in found}) != 1:
        return None
    entry = found[0][1]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, found[0][0])


def fill_page(app, docname, source):
    source[0] = fill(source[0], Path(app.srcdir))


def setup(app):
    app.connect("source-read", fill_page)
    app.add_node(page_times)
    app.add_directive("page-times", PageTimes)
    app.add_post_transform(PageTimesTable)
    app.connect("autodoc-process-docstring", readable, priority=400)  # napoleon has 500
    app.connect("missing-reference", near)
    return {"parallel_read_safe": True}
