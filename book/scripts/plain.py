"""Pages in plain Markdown, for readers that know no MyST: the notebooks in Colab, and the PDF.

Citations become names and years with a link, references become the numbers that the built book has,
figures get their captions as text, and tables, notes and term lists their common form.
"""

import re
import unicodedata
from functools import lru_cache
from os.path import relpath

from facts import fill
from labels import HEADER, MATH, Fence, split

ROLE = re.compile(r"(?:\{([\w:-]+)\})?(?<!`)(`+)(?!`)((?:(?!\n\n).)+?)(?<!`)\2(?!`)", re.S)  # or code
LINK = re.compile(r"\]\(([^)\s:#]+)\.md(#[^)\s]*)?\)")
TERM = re.compile(r"^(\S[^\n]*)\n: +", re.M)
ENTRY = re.compile(r"^@(\w+)\{([^,]+),\n(.*?)^\}", re.S | re.M)
FIELD = re.compile(r"^\s*(\w+)\s*=\s*\{(.*?)\},?$", re.S | re.M)
ACCENT = re.compile(r"\{?\\(['`^\"~c])\{?(\w)\}?\}?")
ACCENTS = {"'": "\u0301", "`": "\u0300", "^": "\u0302", '"': "\u0308", "~": "\u0303", "c": "\u0327"}
DROPPED = {"toctree", "contents", "tableofcontents", "raw", "only"}


# Citations


def accented(match):
    return unicodedata.normalize("NFC", match[2] + ACCENTS[match[1]])


@lru_cache(maxsize=8)
def read_references(file):
    """The entries of a .bib file, {key: {field: text}}, without TeX."""
    entries = {}
    for _, key, fields in ENTRY.findall(file.read_text("utf8")):
        texts = {name.lower(): " ".join(text.split()) for name, text in FIELD.findall(fields)}
        entries[key.strip()] = {
            name: re.sub(r"[{}]", "", ACCENT.sub(accented, text)).replace("--", "\N{EN DASH}").replace("\\&", "&")
            for name, text in texts.items()
        }
    return entries


def link_of(entry):
    """Where a work can be read: arXiv is free for all, so it comes first."""
    if "eprint" in entry:
        return f"https://arxiv.org/abs/{entry['eprint']}"
    return f"https://doi.org/{entry['doi']}" if "doi" in entry else entry.get("url", "")


def names_of(entry):
    names = [name.split(",")[0].strip() for name in entry.get("author", "?").split(" and ")]
    if len(names) > 2 or names[-1] == "others":
        return f"{names[0]} et al."
    return " and ".join(names)


def linked(text, url):
    return f"[{text}]({url})" if url else text


def cite(role, keys, entries):
    works = [entries.get(key.strip(), {"author": key.strip(), "year": "?"}) for key in keys.split(",")]
    if role == "cite:t":
        return ", ".join(linked(f"{names_of(work)} ({work['year']})", link_of(work)) for work in works)
    return "(" + "; ".join(linked(f"{names_of(work)}, {work['year']}", link_of(work)) for work in works) + ")"


def list_references(entries):
    def one(work):
        people = [" ".join(reversed(name.split(", ", 1))) for name in work.get("author", "").split(" and ")]
        where = work.get("booktitle") or work.get("journal") or work.get("howpublished") or ""
        title = linked(work.get("title", ""), link_of(work))
        people = ", ".join(people).replace(", others", " and others")
        return ". ".join(filter(None, [people, title, where, work.get("year")])) + "."

    return "".join(f"- {one(work)}\n" for _, work in sorted(entries.items(), key=lambda item: item[1]["author"]))


# Text


class Page:
    """A page of the book on its way to plain Markdown."""

    def __init__(self, path, book):
        self.path, self.book = path.with_suffix(""), book
        self.entries = read_references(book.root / "book/references.bib")

    def beside(self, page):
        """The file of another page, as seen from this one's folder: the notebook if it is one."""
        text = page.with_suffix(".md").read_text("utf8") if page.with_suffix(".md").exists() else ""
        ending = ".ipynb" if "\nkernelspec:" in text.partition("\n---\n")[0] else ".md"
        return relpath(f"{page}{ending}", self.path.parent)

    def resolve(self, target):
        start = self.book.root if target.startswith("/") else self.path.parent
        return (start / target.strip("/")).resolve() if target else self.path

    def doc(self, text, target):
        page = self.resolve(target)
        return f"[{text or self.book.titles.get(page) or page.name.replace('_', ' ')}]({self.beside(page)})"

    def numref(self, text, label):
        kind, number, *_ = self.book.labels.get(label, ("figure", "?"))
        text = text or f"{kind.capitalize()} %s"
        return text.replace("%s", number).replace("{number}", number)

    def ref(self, text, label):
        _, _, page, title = self.book.labels.get(label, ("", "", self.path, label))
        return text or title if page == self.path else f"[{text or title}]({self.beside(page)})"

    def role(self, match):
        name, _, content = match.groups()
        parts = re.fullmatch(r"(?:(.*?)\s*<)?([^<>]*)>?", content, re.S)
        if parts is None:  # plain code, such as `<name>.weight`
            return match[0]
        text, target = parts.groups()
        if name in ("cite:p", "cite:t", "cite"):
            return cite(name, content, self.entries)
        if name == "eq":
            return f"({self.book.labels.get(target, ('', '?'))[1]})"
        if name in ("doc", "numref", "ref"):
            return getattr(self, name)(text, target)
        return f"*{text or target}*" if name == "term" else match[0]

    def link(self, match):
        """A link to a page goes to its notebook; a place on the page is named by MyST alone."""
        return f"]({self.beside(self.resolve(match[1]))})"

    def text(self, text):
        """Markdown without fences."""
        text = fill(text, self.book.root)
        text = re.sub(r"^\([\w:-]+\)=\n+|^% [^\n]*\n", "", text, flags=re.M)
        text = MATH.sub(lambda math: self.equation(math[1].strip("\n"), math[2]), text)
        text = TERM.sub(r"- **\1**: ", text)
        return LINK.sub(self.link, ROLE.sub(self.role, text))

    def equation(self, math, label):
        number = self.book.labels.get(label, ("", "?"))[1]
        if r"\\" in math and r"\begin" not in math:  # as the built book does with more than one line
            math = rf"\begin{{aligned}}{math}\end{{aligned}}"
        return f"$$\n{math.strip()}" + (rf" \tag{{{number}}}" if label else "") + "\n$$"

    # Fences

    def caption(self, fence):
        """The line below a figure, above a table."""
        kind, number, *_ = self.book.labels.get(fence.label, ("figure", ""))
        start = f"{kind.capitalize()} {number}".strip()
        return f"**{start}.** {self.render(str(fence.caption)).strip()}"

    def fence(self, fence):
        """Plain Markdown for a fenced block."""
        if not fence.name:
            return fill(fence.source, self.book.root)
        if fence.name in ("code-block", "code"):
            return f"```{fence.argument}\n{fence.body}\n```\n"
        if fence.name == "math":
            return self.equation(fence.body, fence.label) + "\n"
        if fence.name == "figure":
            return f"![{fence.options.get('alt', '')}]({fence.argument})\n\n{self.caption(fence)}\n"
        if fence.name == "list-table":
            return self.table(fence)
        if fence.name == "bibliography":
            return list_references(self.entries)
        if fence.name == "glossary":
            return self.render(re.sub(r"^(\S[^\n]*)\n  (?=\S)", r"\1\n: ", fence.body, flags=re.M)) + "\n"
        if fence.name == "eval-rst":
            return "*What the library's docstrings say is shown on the site alone.*\n"
        return "" if fence.name in DROPPED else self.note(fence)

    def note(self, fence):
        title = fence.argument if fence.name in ("admonition", "dropdown") else fence.name.capitalize()
        text = f"**{self.render(title).strip()}**\n\n{self.render(fence.body).strip()}"
        return "".join(f"> {line}".rstrip() + "\n" for line in text.split("\n"))

    def table(self, fence):
        """A list of lists as a table with bars."""
        rows = [re.split(r"^  - ?", row, flags=re.M) for row in re.split(r"^\* - ?", fence.body, flags=re.M)[1:]]
        rows = [[" ".join(self.render(cell).split()).replace("|", r"\|") for cell in row] for row in rows]
        head = rows.pop(0) if int(fence.options.get("header-rows") or 0) else [""] * len(rows[0])
        lines = [head, ["---"] * len(head), *rows]
        title = f"{self.caption(fence)}\n\n" if fence.argument else ""
        return title + "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def render(self, text):
        """Plain Markdown for a page's text, without its header."""
        parts = split(HEADER.sub("", text))
        return "".join(self.fence(part) if isinstance(part, Fence) else self.text(part) for part in parts)


def render_cells(cells, path, book, new_cell):
    """Plain cells; the caption of a figure becomes a cell of its own, below its picture."""
    page, plain = Page(path, book), []
    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = page.render(cell.source).strip("\n")
        plain.append(cell)
        figure = cell.metadata.get("mystnb", {}).get("figure")
        if figure:
            fence = Fence("code-cell", "", {"mystnb": {"figure": figure}}, "", "")
            plain.append(new_cell(page.caption(fence)))
    return plain
