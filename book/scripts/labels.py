"""What the pages of the book name, and the numbers that the built book gives them.

Figures, tables and equations count by chapter where chapters have numbers (``numbered`` in _toc.yml);
on all other pages they count together, from the first page of the book on. A test compares with the site.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import yaml
from markdown_it import MarkdownIt
from mdit_py_plugins.colon_fence import colon_fence_plugin

MARKDOWN = MarkdownIt().use(colon_fence_plugin)
DIRECTIVE = re.compile(r"(?:\{([\w:-]+)\})?[ ]*(.*)")
HEADER = re.compile(r"\A---\n(.*?)\n---\n", re.S)
MATH = re.compile(r"^\$\$((?:(?!\$\$).)*)\$\$[ ]*\(([\w:-]+)\)[ ]*$", re.S | re.M)
TARGET = re.compile(r"^\(([\w:-]+)\)=\n+#+ ([^\n]+)$", re.M)
KINDS = {"figure": "figure", "code-cell": "figure", "list-table": "table", "table": "table", "math": "equation"}


@dataclass
class Fence:
    """A fenced block of a page: a directive, or plain code if it has no name."""

    name: str
    argument: str
    options: dict
    body: str
    source: str

    @property
    def caption(self):
        """A code cell's figure has its caption in the settings, a directive has it below them."""
        figure = (self.options.get("mystnb") or {}).get("figure") or {}
        return {"code-cell": figure.get("caption"), "figure": self.body.strip()}.get(self.name, self.argument)

    @property
    def label(self):
        figure = (self.options.get("mystnb") or {}).get("figure") or {}
        return figure.get("name") or self.options.get("name") or self.options.get("label")


def split(text):
    """A page's text as a list of strings and fences."""
    parts, lines, at = [], text.splitlines(keepends=True), 0
    for token in MARKDOWN.parse(text):
        if token.type in ("fence", "colon_fence"):
            start, end = token.map
            parts += ["".join(lines[at:start]), read_fence(token, "".join(lines[start:end]))]
            at = end
    return [part for part in [*parts, "".join(lines[at:])] if part]


def read_fence(token, source):
    """A fenced block; what stands in braces is the name of a directive."""
    name, argument = DIRECTIVE.match(token.info.strip()).groups()
    options, body = read_options(token.content.removesuffix("\n").split("\n")) if name else ({}, token.content)
    return Fence(name or "", argument, options, body, source)


def read_options(lines):
    """The settings at the head of a directive, written as :key: value or as YAML, and what follows."""
    if lines[:1] == ["---"] and "---" in lines[1:]:
        end = lines.index("---", 1)
        return yaml.safe_load("\n".join(lines[1:end])) or {}, "\n".join(lines[end + 1 :])
    options = {}
    while lines and (option := re.match(r":([\w-]+):(?: (.*))?$", lines[0])):
        options[option[1]] = (option[2] or "").strip()
        lines = lines[1:]
    return options, "\n".join(lines)


@lru_cache(maxsize=200)
def read_page(text):
    """Title of a page, and (kind, label, title) of all that may be referred to, in its order."""
    text = HEADER.sub("", text)
    title = re.search(r"^# ([^\n]+)$", text, re.M)
    found = []
    for part in split(text):
        if isinstance(part, str):
            found += [("equation", math[2], "") for math in MATH.finditer(part)]
            found += [("section", target[1], target[2]) for target in TARGET.finditer(part)]
        elif part.name in KINDS and (part.label if part.name == "math" else part.caption):
            found.append((KINDS[part.name], part.label, part.caption))
        elif part.name.startswith("code") or not part.name:
            continue
        else:  # a note, say: what it holds counts as well
            found += read_page(part.body)[1]
    return title[1] if title else "", found


def read_toc(root):
    """(page, number of its chapter or None) in the order of the book; a page is a path without its ending."""
    toc = yaml.safe_load((root / "_toc.yml").read_text("utf8"))
    pages, number = [(toc["root"], None)], 0
    for part in toc.get("parts", [toc]):
        for chapter in part.get("chapters", []):
            number += bool(part.get("numbered"))
            pages += [(page, number if part.get("numbered") else None) for page in walk(chapter)]
    return [(root / page, number) for page, number in pages]


def walk(entry):
    return [entry["file"], *(page for section in entry.get("sections", []) for page in walk(section))]


@dataclass
class Book:
    """Titles of pages, and for each label (kind, number or empty, page, title)."""

    root: Path
    titles: dict = field(default_factory=dict)
    labels: dict = field(default_factory=dict)
    chapters: dict = field(default_factory=dict)

    def add(self, page, chapter, counts):
        if not page.with_suffix(".md").exists():
            return
        title, found = read_page(page.with_suffix(".md").read_text("utf8"))
        self.titles[page], self.chapters[page] = title, chapter
        for kind, label, text in found:
            counts[kind, chapter] += kind != "section"
            number = f"{chapter}." * bool(chapter) + str(counts[kind, chapter]) if kind != "section" else ""
            if label:
                self.labels[label] = kind, number, page, text


def read_book(root):
    """The whole book; a page that is not in _toc.yml yet counts alone."""
    book, counts = Book(root), Counter()
    for page, chapter in read_toc(root):
        book.add(page, chapter, counts)
    for page in sorted((root / "book").glob("**/[!_]*.md")):
        if page.with_suffix("") not in book.titles:
            book.add(page.with_suffix(""), None, Counter())
    return book
