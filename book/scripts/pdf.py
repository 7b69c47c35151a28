"""Prints the book: ``python book/scripts/pdf.py [file]`` writes _build/csq-bit-by-bit.pdf.

Nothing is executed: pages and outputs come from the paired notebooks, which hold plain Markdown. Pandoc makes one
Typst document of all of them, and Typst sets it. Both come as wheels, with their fonts.
"""

import argparse
import base64
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import nbformat
import pypandoc
import typst
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "_ext"))
import plain
from facts import ROOT, address
from labels import read_book, read_toc, walk

FILE = ROOT / "_build" / "csq-bit-by-bit.pdf"
TEMPLATE = Path(__file__).with_name("pdf.typ")
SCALE = 0.8  # of pictures: a sheet is read from nearer than a screen
TAGGED = re.compile(r"^\$\$\n((?:(?!\$\$).)*?) \\tag\{([\d.]+)\}\n\$\$$", re.S | re.M)
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:)([^)\s]*)\)")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def raw(text):
    """Typst in the midst of Markdown."""
    return f"\n\n```{{=typst}}\n{text}\n```\n\n"


def name_of(page, root=ROOT):
    return "page-" + page.relative_to(root).as_posix().replace("/", "-").replace("_", "-")


class Printer:
    """Pages as Pandoc's Markdown; pictures go into a folder beside the document."""

    def __init__(self, folder, root=ROOT):
        self.folder, self.root, self.book, self.pictures = folder, root, read_book(root), 0
        self.printed = {page for page, _ in read_toc(root)}
        folder.mkdir(parents=True, exist_ok=True)

    def page(self, page):
        """One page, its title with the number of its chapter."""
        notebook = page.with_suffix(".ipynb")
        if notebook.exists():
            cells = nbformat.read(notebook, as_version=4).cells
            text = "\n\n".join(filter(None, map(self.cell, cells)))
        else:
            text = plain.Page(page, self.book).render(page.with_suffix(".md").read_text("utf8"))
        text = IMAGE.sub(partial(self.image, page.parent), text)
        text = LINK.sub(partial(self.link, page), TAGGED.sub(self.equation, text))
        number = f"{self.book.chapters[page]} " if self.book.chapters.get(page) else ""
        return re.sub(r"^# (.+)$", rf"# {number}\1 {{#{name_of(page, self.root)}}}", text, count=1, flags=re.M)

    def cell(self, cell):
        if cell.cell_type == "markdown":
            return cell.source
        if "remove-cell" in cell.metadata.get("tags", []):
            return ""
        alt = " ".join(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "").split())
        hidden = {"remove-input", "hide-input"} & set(cell.metadata.get("tags", []))
        code = "" if hidden else f"```python\n{cell.source}\n```"
        return "\n\n".join(filter(None, [code, *(self.output(output, alt) for output in cell.outputs)]))

    def output(self, output, alt):
        data = output.get("data", {"text/plain": output.get("text", "")})
        for kind, ending in (("image/svg+xml", "svg"), ("image/png", "png")):
            if kind in data:
                return self.picture(data[kind], ending, alt)
        if "text/markdown" in data:
            return data["text/markdown"]
        if "<table" in data.get("text/html", ""):
            return pypandoc.convert_text(data["text/html"], "markdown-raw_html-simple_tables-multiline_tables", "html",
                                         extra_args=["--columns=200"])  # fmt: skip
        text = ANSI.sub("", data.get("text/plain", "")).rstrip()
        return f"```output\n{text}\n```" if text else ""

    def picture(self, content, ending, alt):
        self.pictures += 1
        file = self.folder / f"{self.pictures}.{ending}"
        file.write_bytes(content.encode() if ending == "svg" else base64.b64decode(content))
        width = re.search(r'<svg[^>]*\bwidth="([\d.]+)pt"', content[:2000]) if ending == "svg" else None
        size = f"{float(width[1]) * SCALE:.0f}pt" if width else "auto"
        return raw(f"#picture({quoted(file.name)}, {size}, {quoted(alt)})")

    def image(self, folder, match):
        return self.picture((folder / match[2]).read_text("utf8"), "svg", match[1])

    def link(self, page, match):
        """Links inside the book go to the page's title; there is nothing below it that both forms of a page name."""
        target = (page.parent / match[2].partition("#")[0]).resolve().with_suffix("") if match[2][:1] != "#" else page
        return f"[{match[1]}](#{name_of(target, self.root)})" if target in self.printed else match[1]

    def equation(self, match):
        start, end = (raw(f"#set math.equation(numbering: {value})") for value in (f"_ => [({match[2]})]", "none"))
        return f"{start}$$\n{match[1]}\n$$\n{end}"


def quoted(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def whole_book(printer, root=ROOT):
    """The pages in the order of _toc.yml; a part begins with a page of its own."""
    toc = yaml.safe_load((root / "_toc.yml").read_text("utf8"))
    texts = [printer.page(root / toc["root"])]
    for part in toc["parts"]:
        texts.append(raw(f"#part({quoted(part['caption'])})"))
        texts += [printer.page(root / page) for chapter in part["chapters"] for page in walk(chapter)]
    return "\n\n".join(texts)


def print_book(file, root=ROOT):
    """Write the PDF; the Typst document and its pictures stay beside it, in pdf/."""
    folder = file.parent / "pdf"
    shutil.rmtree(folder, ignore_errors=True)
    config = yaml.safe_load((root / "_config.yml").read_text("utf8"))
    words = {"title": config["title"], "author": config["author"], "address": address(root)}
    arguments = [f"--template={TEMPLATE}", "--shift-heading-level-by=1", "--syntax-highlighting=idiomatic",
                 *(f"--variable={name}={word}" for name, word in words.items())]  # fmt: skip
    reading = "markdown-implicit_figures-citations-auto_identifiers"
    markdown, document = whole_book(Printer(folder, root), root), folder / "book.typ"
    pypandoc.convert_text(markdown, "typst", reading, extra_args=arguments, outputfile=str(document))
    typst.compile(document, output=file)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=FILE)
    file = parser.parse_args(argv).file.resolve()
    print_book(file)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
