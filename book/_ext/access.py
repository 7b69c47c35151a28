"""Sphinx extension: what Markdown cannot say to those who listen to a page, and what figures can spare.

Names and roles that Sphinx, docutils and MyST-NB write amiss are put right in the finished text of a page;
tests/test_browser.py has every page judged. Figures lose what nobody sees: remarks, line ends, the seventh digit.
"""

import re
from pathlib import Path

# A parameter a line: Sphinx makes a list of definitions with nothing defined.
SIGNATURE = re.compile(r'(<span class="sig-paren">\(</span>\s*)<dl>(.*?)</dl>(\s*<span class="sig-paren">\))', re.S)
NAMES = [
    # The fold of a cell shows a text of its own, so that is its name.
    ('<summary aria-label="Toggle hidden content">', "<summary>"),
    # A list has items; docutils gives its entries another role, now deprecated.
    (' role="doc-biblioentry"', ' role="listitem"'),
]

UNSEEN = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<!--.*?-->", re.S)
PATH = re.compile(r' d="([MLQCz\d\s.e-]*)"')  # as Matplotlib writes them
PLACES = re.compile(r'\b(?:x|y|points)="[^"]*"|\btranslate\([^)]*\)')
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
USE = re.compile(r'(?:url\(|href=")#([\w.-]+)')
NAMED = re.compile(r'<g id="([^"]*)">')
LONE = re.compile(r"<g>(<(?:path|use)[^>]*/>)</g>")


def put_right(body):
    """The HTML of a page's text, with names and roles mended."""
    body = SIGNATURE.sub(_as_lines, body)
    for wrong, right in NAMES:
        body = body.replace(wrong, right)
    return body


def _as_lines(match):
    lines = re.sub(r"<(/?)dd>", lambda tag: "</div>" if tag[1] else '<div class="sig-line">', match[2])
    return match[1] + lines.strip() + match[3]


def slim(svg):
    """The same picture in fewer bytes: places to a hundredth of a point, each from the one before."""
    svg = re.sub(r">\s+<", "><", UNSEEN.sub("", svg))
    svg = re.sub(r'style="[^"]*"', lambda style: re.sub(r"([:;]) ", r"\1", style[0]), svg)
    svg = PATH.sub(lambda path: f' d="{_steps(path[1])}"', svg)
    svg = PLACES.sub(lambda places: NUMBER.sub(lambda n: _short(float(n[0])), places[0]), svg)
    used = {name: f"n{i}" for i, name in enumerate(dict.fromkeys(USE.findall(svg)))}
    svg = NAMED.sub(lambda group: group[0] if group[1] in used else "<g>", svg)
    svg = USE.sub(lambda use: use[0][: -len(use[1])] + used[use[1]], svg)
    svg = re.sub(r' id="([^"]+)"', lambda name: f' id="{used[name[1]]}"' if name[1] in used else name[0], svg)
    return LONE.sub(r"\1", svg.replace(" xlink:href=", " href=")).strip() + "\n"


def _steps(path):
    """A path of absolute places as steps from place to place."""
    steps, at, start = [], (0.0, 0.0), (0.0, 0.0)
    for letter, numbers in re.findall(r"([MLQCz])([^MLQCz]*)", path):
        values = [round(float(n), 2) for n in numbers.split()]
        ends = list(zip(values[::2], values[1::2]))
        if letter == "z":
            at = start
            steps.append("z")
        elif letter == "M":
            at = start = ends[-1]
            steps.append("M" + _row(at))
        else:
            moved = [round(end - here, 2) for place in ends for end, here in zip(place, at)]
            at = ends[-1]
            if letter == "L" and 0 in moved:
                steps.append(f"h{_short(moved[0])}" if moved[1] == 0 else f"v{_short(moved[1])}")
            else:
                steps.append(letter.lower() + _row(moved))
    return "".join(steps)


def _row(numbers):
    return " ".join(map(_short, numbers)).replace(" -", "-")


def _short(number):
    text = f"{number:.2f}".rstrip("0").rstrip(".")
    return {"-0": "0"}.get(text, re.sub(r"^(-?)0\.", r"\1.", text))


def mend(app, pagename, templatename, context, doctree):
    if "body" in context:
        context["body"] = put_right(context["body"])


def slim_figures(app, error):
    if error is None and app.builder.format == "html":
        for file in (Path(app.outdir) / "_images").glob("*.svg"):
            text = file.read_text("utf8")
            if UNSEEN.search(text):  # else it is slim already
                file.write_text(slim(text), "utf8")


def setup(app):
    app.connect("html-page-context", mend)
    app.connect("build-finished", slim_figures)
    return {"parallel_read_safe": True}
