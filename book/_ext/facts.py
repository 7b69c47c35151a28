"""Sphinx extension: what pages take from the repository, so that it is written in one place.

A page writes one of these names in double braces:

- ``repository``: the address, from _config.yml
- ``version``: of the library, from CITATION.cff
- ``made``: how long each page took when its notebook was last made, and with what
"""

import re
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[2]
FACT = re.compile(r"\{\{ (repository|version|made) \}\}")


def address(root=ROOT):
    """The repository's address."""
    return yaml.safe_load((root / "_config.yml").read_text("utf8"))["repository"]["url"].rstrip("/")


def version(root):
    return yaml.safe_load((root / "CITATION.cff").read_text("utf8"))["version"]


def made(root):
    """For each set of versions and processor: the pages made with it and their seconds, in the order of the book."""
    seconds = {}
    for page in re.findall(r"(?:root|file): (\S+)", (root / "_toc.yml").read_text("utf8")):
        file = root / f"{page}.ipynb"
        facts = nbformat.read(file, as_version=4).metadata.get("csq") if file.exists() else None
        if facts:
            seconds.setdefault(facts["where"], {})[page] = facts["seconds"]
    return "\n\n".join(_table(where, pages) for where, pages in seconds.items())


def _table(where, pages):
    rows = [f"| {{doc}}`/{page}` | {seconds:.1f} |" for page, seconds in pages.items()]
    total = f"| all {len(pages)} pages | {sum(pages.values()):.1f} |"
    return "\n".join([f"Made with {where}:", "", "| page | seconds |", "| --- | --- |", *rows, total])


def fill(text, root=ROOT):
    """A page's text with its facts filled in."""
    known = {"repository": address, "version": version, "made": made}
    return FACT.sub(lambda fact: known[fact[1]](root), text)


def fill_page(app, docname, source):
    source[0] = fill(source[0], Path(app.srcdir))


def setup(app):
    app.connect("source-read", fill_page)
    return {"parallel_read_safe": True}
