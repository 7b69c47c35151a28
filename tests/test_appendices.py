"""The appendices say what the repository says: every public name, figure and reference, nothing typed twice."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

import csq_mini as csq

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
sys.path.insert(0, str(BOOK / "_ext"))
appendix = pytest.importorskip("appendix", reason='needs pip install -e ".[book]"')

CHAPTERS = ("precision", "bits", "straight_through", "gate", "temperature", "masks", "budget", "csq", "activations",
            "exact", "schemes", "your_network", "paper_code")  # fmt: skip
APPENDICES = ("notation", "glossary", "file_format", "published", "further", "api", "status", "cite", "bibliography")
API = (BOOK / "api.md").read_text("utf8")
MODULES = re.findall(r"automodule:: ([\w.]+)", API)
NAMES = re.findall(r"auto(?:function|class|exception):: ([\w.]+)", API)
REFERENCES = (BOOK / "references.bib").read_text("utf8")
ENTRIES = {key: dict(re.findall(r"^  (\w+) *= \{(.*)\},$", text, re.M))
           for key, text in re.findall(r"^@\w+\{(\w+),\n(.*?)^\}$", REFERENCES, re.S | re.M)}  # fmt: skip


# The library's functions


def public_names():
    """What the page must have: names of csq_mini, and what its public modules define."""
    found = [f"csq_mini.{name}" for name in csq.__all__ if not inspect.ismodule(getattr(csq, name))]
    for module in ("data", "models", "recipes", "plots", "charts", "widgets", "pages", "puzzles"):
        place = importlib.import_module(f"csq_mini.{module}")
        names = getattr(place, "__all__", None) or [
            name for name, thing in vars(place).items() if getattr(thing, "__module__", None) == place.__name__
        ]
        things = {name: getattr(place, name) for name in names if not name.startswith("_")}
        found += [f"{place.__name__}.{name}" for name, thing in things.items() if callable(thing) and thing.__doc__]
    return [name for name in found if name not in ("csq_mini.data.Split", "csq_mini.recipes.Recipe")]


def test_every_public_name_is_asked_for():
    asked = {*NAMES, *(f"csq_mini.{name}" for name in csq.__all__ if f"csq_mini.{name}" in MODULES)}
    assert not {f"csq_mini.{name}" for name in csq.__all__} - asked
    assert {f"csq_mini.{name}" for name in ("bits", "recipes", "pages", "puzzles")} <= set(MODULES)
    assert len(NAMES) == len(set(NAMES)) and len(MODULES) == len(set(MODULES))
    assert len(public_names()) > 50


def test_the_groups_follow_the_chapters():
    linked = [CHAPTERS.index(stem) for stem in re.findall(r"\{doc\}`chapters/(\w+)`", API)]
    first = {stem: place for place, stem in reversed(list(enumerate(linked)))}
    order = [stem for stem in sorted(first, key=first.get) if stem not in (CHAPTERS.index("csq"),)]
    assert order == sorted(order)


def test_every_command_and_option_is_listed():
    text = appendix.fill("{{ commands }}\n", ROOT)
    helped = subprocess.run([sys.executable, "-m", "csq_mini.cli", "--help"], text=True, capture_output=True).stdout
    names = re.search(r"\{([\w,-]+)\}", helped)[1].split(",")
    assert [*re.findall(r"^### `csq-mini (\w+)`$", text, re.M)] == names
    source = (ROOT / "csq_mini/cli.py").read_text("utf8")
    for option in re.findall(r'add_argument\(\s*"(--[\w-]+)"', source):
        assert f"`{option}" in text or option == "--version"


def test_docstrings_become_readable_pages():
    lines = ["Weights |W| of ``a | b``.", "", "Attributes:", "    p, n: bit logits,", "        for each weight.",
             "    q: masks.", "", "Returns:", "    P and N: a positive", "    code.", "Raises:",
             "    ValueError: no."]  # fmt: skip
    appendix.readable(None, "class", "", None, None, lines)
    assert lines[0] == "Weights \u2223W\u2223 of ``a | b``."
    assert lines[lines.index("``p``, ``n``") :][:3] == ["``p``, ``n``", "   bit logits,", "   for each weight."]
    assert ":returns: P and N: a positive" in lines and lines[-2:] == ["Raises:", "    ValueError: no."]
    described = ["Whether: so."]
    appendix.readable(None, "property", "", None, None, described)
    assert described == ["..", "", "Whether: so."]


# Citations


def test_placeholders_are_filled_and_others_left():
    assert appendix.fill("{{ nothing }}\ntext {{ citation }}\n", ROOT) == "{{ nothing }}\ntext {{ citation }}\n"
    config, cff = (yaml.safe_load((ROOT / name).read_text("utf8")) for name in ("_config.yml", "CITATION.cff"))
    for what, wanted in (("paper", ENTRIES["csq"]["doi"]), ("book", config["title"]), ("software", cff["title"])):
        text = appendix.fill(f"{{{{ bibtex {what} }}}}", ROOT)
        assert text.startswith("```bibtex\n@") and wanted in text and text.count("{") == text.count("}")
        assert max(map(len, text.splitlines())) <= 76
    assert cff["version"] == csq.__version__ and cff["version"] in appendix.fill("{{ bibtex software }}", ROOT)
    box = appendix.fill("{{ citation }}", ROOT)
    assert config["title"] in box and config["repository"]["url"] in box and box.startswith(":::{admonition}")
    page = (BOOK / "cite.md").read_text("utf8")
    assert all(f"{{{{ bibtex {what} }}}}" in page for what in ("paper", "book", "software"))
    assert (BOOK / "index.md").read_text("utf8").rstrip().endswith("{{ citation }}")


def test_the_paper_is_the_same_in_both_lists():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf8"))["references"][0]
    assert re.sub("[{}]", "", ENTRIES["csq"]["title"]) == paper["title"]
    people = [f"{p['family-names']}, {p['given-names']}" for p in paper["authors"]]
    assert ENTRIES["csq"]["author"].split(" and ") == people
    assert int(ENTRIES["csq"]["year"]) == paper["year"]
    assert [i["value"] for i in paper["identifiers"]] == [f"arXiv:{ENTRIES['csq']['eprint']}"]


def test_every_reference_is_complete_and_every_citation_has_one():
    assert len(ENTRIES) == REFERENCES.count("\n@") + REFERENCES.startswith("@")
    for key, entry in ENTRIES.items():
        assert {"title", "author", "year"} <= set(entry) and set(entry) & {"eprint", "doi", "url"}, key
        assert re.fullmatch(r"\d{4}\.\d{4,5}", entry.get("eprint", "1234.56789")), key
        assert re.fullmatch(r"(19|20)\d\d", entry["year"]), key
    for page in BOOK.glob("**/*.md"):
        for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", page.read_text("utf8")):
            assert not {key.strip() for key in keys.split(",")} - set(ENTRIES), page


def test_further_reading_cites_each_theme():
    text = (BOOK / "further.md").read_text("utf8")
    themes = re.split(r"^## ", text, flags=re.M)[1:]
    assert len(themes) >= 6
    for theme in themes[:-1]:
        assert re.search(r"\{cite:[pt]\}`", theme), theme.partition("\n")[0]


# Glossary


def test_every_term_is_explained_and_leads_to_a_page():
    text = (BOOK / "glossary.md").read_text("utf8")
    body = re.search(r"```\{glossary\}\n:sorted:\n\n(.*?)\n```", text, re.S)[1]
    terms, reached = [], set()
    for entry in body.split("\n\n"):
        *names, meaning = entry.split("\n")
        assert names and all(not name.startswith(" ") for name in names), entry
        assert meaning.startswith("  ") and len(meaning) < 330, names
        terms += names
        links = re.findall(r"\{doc\}`([^`]+)`", meaning)
        assert links, names
        for link in links:
            assert (BOOK / f"{link}.md").exists() or link.removeprefix("chapters/") in CHAPTERS, link
        reached |= set(links)
    assert len(terms) == len(set(terms)) > 60
    assert {f"chapters/{stem}" for stem in CHAPTERS} <= reached
    assert not set(re.findall(r"\{term\}`([^`]+)`", text)) - set(terms)


# Published figures, index


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


def test_the_first_page_leads_to_all_chapters_and_appendices():
    text = (BOOK / "index.md").read_text("utf8")
    linked = re.findall(r"\{doc\}`([^`]+)`", text)
    assert [link.removeprefix("chapters/") for link in linked if link.startswith("chapters/")] == list(CHAPTERS)
    assert set(APPENDICES) <= set(linked) and "solutions/index.md" in text and "reproductions/resnet20" in linked


# The state of the build


def test_the_state_of_the_build_is_steady_and_names_no_place():
    text = appendix.fill("{{ machine }}\n\n{{ times }}\n", ROOT)
    assert text == appendix.fill("{{ machine }}\n\n{{ times }}\n", ROOT)
    assert csq.__version__ in text and "torch " in text and "{page-times}" in text
    assert str(ROOT) not in text and not re.search(r"(?<![\w.])/(home|root|Users|tmp|work)/", text)


NOTEBOOK = """---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
jupytext:
  text_representation:
    extension: .md
    format_name: myst
---

# A page with code

```{code-cell} ipython3
from pathlib import Path
Path("executed").write_text(Path("executed").read_text() + "x" if Path("executed").exists() else "x")
print("done")
```
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The real appendices, with chapters that are titles alone, built twice as `make book` builds."""
    for module in ("jupyter_book", "sphinx-mathjax-offline"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'{module} is missing: pip install -e ".[book]"')
    folder = tmp_path_factory.mktemp("appendices")
    for name in ("_config.yml", "CITATION.cff", "book/references.bib", "book/reproductions/published.yml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name in ("book/_ext", "book/_static"):
        shutil.copytree(ROOT / name, folder / name)
    pages = ["book/index", *(f"book/{name}" for name in APPENDICES if name not in ("file_format", "published"))]
    for name in pages:
        shutil.copy(ROOT / f"{name}.md", folder / f"{name}.md")
    others = [f"book/chapters/{stem}" for stem in CHAPTERS]
    others += [f"book/reproductions/{stem}" for stem in ("resnet20", "vgg19bn", "activations")]
    others += [f"book/{name}" for name in ("install", "one_page", "charts", "widgets", "file_format", "published")]
    others += ["book/solutions/index"]
    for name in others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(NOTEBOOK if name == "book/published" else f"# Page {Path(name).stem}\n")
    nbformat.write(nbformat.v4.new_notebook(), folder / "book/published.ipynb")  # the rocket looks for it
    listed = "".join(f"- file: {name}\n" for name in [*others, *pages[1:]])
    (folder / "_toc.yml").write_text(f"format: jb-book\nroot: book/index\nchapters:\n{listed}")
    program = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(folder)]
    for _ in range(2):
        run = subprocess.run([*program, "--all", "-W", "-n", "--keep-going"], text=True, capture_output=True)
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return folder


def read(site, name):
    return (site / f"_build/html/book/{name}.html").read_text("utf8")


def test_built_every_public_name_has_its_place(site):
    page = read(site, "api")
    for name in public_names():
        short = name.rpartition(".")[2]
        assert f'id="{name}"' in page or re.search(rf'<dt class="sig[^>]*id="csq_mini\.[\w.]*\b{short}"', page), name
    text = re.sub("<[^>]+>", "", re.sub("<script.*?</script>", "", page, flags=re.S))
    assert "csq-mini reproduce" in text and "{{" not in text


def test_built_status_has_a_time_for_each_page_and_executes_nothing_anew(site):
    assert (site / "book/executed").read_text() == "x"
    page = read(site, "status")
    assert re.search(r'<a [^>]*href="published.html"[^>]*>.*?A page with code.*?</a>.*?<td><p>\d+\.\d', page, re.S)
    assert f"csq-mini {csq.__version__}" in page and "all pages with code: 1" in page


def test_built_pages_cite(site):
    assert "10.1109" in re.sub("<[^>]+>", "", read(site, "cite"))
    index = read(site, "index")
    assert "To cite this book" in index and 'href="cite.html"' in index
    assert 'id="term-temperature"' in read(site, "glossary")
