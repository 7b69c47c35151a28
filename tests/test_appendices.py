"""The appendices say what the repository says: public names, citations, published figures, versions."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import nbformat
import pytest
import yaml

import csq_mini as csq

pytest.importorskip("sphinx", reason='needs pip install -e ".[book]"')
import docstrings
import facts
import plain

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
PUBLIC = [name for name in csq.__all__ if not name.startswith("__")]


def bibliography():
    return plain.read_references(BOOK / "references.bib")


def cff():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text("utf8"))


# The library's functions


def test_every_public_name_has_its_place():
    """Sphinx stops where a name is listed that is not there; here, where one is there and not listed."""
    text = (BOOK / "api.md").read_text("utf8")
    modules = re.findall(r"automodule:: ([\w.]+)", text)
    names = re.findall(r"auto(?:function|class|exception):: ([\w.]+)", text)
    assert len(names) == len(set(names)) and len(modules) == len(set(modules))
    listed = {*names, *modules}
    assert not {name for name in PUBLIC
                if f"csq_mini.{name}" not in listed and getattr(csq, name).__module__ not in modules}  # fmt: skip
    for module in ("charts", "labs", "pages", "puzzles"):
        assert f"csq_book.{module}" in modules and importlib.import_module(f"csq_book.{module}").__doc__


def test_every_public_name_says_what_it_does():
    assert not [name for name in PUBLIC if not inspect.getdoc(getattr(csq, name))]


def test_docstrings_become_readable_pages():
    lines = ["Weights |W| of ``a | b``."]
    docstrings.readable(None, "class", "", None, None, lines)
    assert lines == ["Weights \u2223W\u2223 of ``a | b``."]
    described = ["Whether: so."]
    docstrings.readable(None, "property", "", None, None, described)
    assert described == ["..", "", "Whether: so."]


# Citations


def test_the_page_on_citing_says_what_the_repository_says():
    text = " ".join(facts.fill((BOOK / "cite.md").read_text("utf8")).split())
    paper, config, software = bibliography()["csq"], yaml.safe_load((ROOT / "_config.yml").read_text("utf8")), cff()
    assert all(paper[field] in re.sub(r"[{}](?=CSQ|:)|}(?=:)", "", text) for field in ("doi", "eprint", "booktitle"))
    about = software["abstract"].partition(",")[0]
    for word in (config["title"], config["author"], config["copyright"], facts.address(), about):
        assert word in text, word
    assert text.count(f"Version {software['version']}") == 2 and software["version"] == csq.__version__
    first = facts.fill((BOOK / "index.md").read_text("utf8"))
    assert f"{config['author']} ({config['copyright']}). *{config['title']}*. Version {csq.__version__}." in first


def test_the_paper_is_the_same_in_both_lists():
    paper, entry = cff()["references"][0], bibliography()["csq"]
    assert (entry["title"], entry["year"]) == (paper["title"], str(paper["year"]))
    assert entry["author"] == " and ".join(f"{p['family-names']}, {p['given-names']}" for p in paper["authors"])
    assert [i["value"] for i in paper["identifiers"]] == [f"arXiv:{entry['eprint']}"]


def test_every_reference_is_complete_and_can_be_found():
    for key, entry in bibliography().items():
        assert {"title", "author", "year"} <= set(entry) and plain.link_of(entry).startswith("http"), key
        assert re.fullmatch(r"\d{4}\.\d{4,5}", entry.get("eprint", "1234.56789")), key


# Published figures


def test_every_published_figure_is_on_its_page_with_its_source():
    figures = yaml.safe_load((BOOK / "reproductions/published.yml").read_text("utf8"))["figures"]
    notebook = nbformat.read(BOOK / "published.ipynb", as_version=4)
    shown = "".join(str(output.get("data", "")) + output.get("text", "")
                    for cell in notebook.cells for output in cell.get("outputs", []))  # fmt: skip
    for figure in figures:
        assert figure["source"], figure["id"]
        assert figure["what"] in shown, figure["id"]
        if figure["value"] is not None:
            assert figure["source"] in shown
            form = "{:.2f}%" if figure["measure"] == "accuracy" else "{:,.0f}"
            assert form.format(figure["value"]) in shown, figure["id"]


# The repository's facts


def test_facts_are_filled_in_and_other_braces_left():
    text = "{{ nothing }} {{CSQ}} url = {{{ repository }}}, {{ version }}"
    assert facts.fill(text) == f"{{{{ nothing }}}} {{{{CSQ}}}} url = {{{facts.address()}}}, {csq.__version__}"


def test_run_times_stand_in_the_order_of_the_book(tmp_path):
    chapters = "".join(f"- file: book/{name}\n" for name in ("b", "text", "a"))
    (tmp_path / "_toc.yml").write_text(f"root: book/index\nchapters:\n{chapters}")
    (tmp_path / "book").mkdir()
    for page, seconds, where in (("a", 1.25, "this"), ("b", 2.0, "this"), ("other", 9.0, "this")):
        metadata = {"csq": {"seconds": seconds, "where": where, "sources": "0"}}
        nbformat.write(nbformat.v4.new_notebook(metadata=metadata), tmp_path / f"book/{page}.ipynb")
    assert facts.made(tmp_path).splitlines() == [
        "Made with this:", "", "| page | seconds |", "| --- | --- |", "| {doc}`/book/b` | 2.0 |",
        "| {doc}`/book/a` | 1.2 |", "| all 2 pages | 3.2 |",
    ]  # fmt: skip
