"""Every puzzle's check accepts the solution of the book and rejects typical wrong answers."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import jupytext
import pytest
import torch

from csq_book import puzzles

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "book/chapters").glob("*.md"))
MODULES = sorted(p for p in (ROOT / "csq_mini/puzzles").glob("*.py") if not p.stem.startswith("_"))


def cells(page, tag=None):
    nb = jupytext.reads(page.read_text("utf8"), fmt={"extension": ".md", "format_name": "myst"})
    return [c.source for c in nb.cells if c.cell_type == "code" and (tag is None or tag in c.metadata.get("tags", []))]


def solutions(chapter):
    """Names that a chapter's page of solutions defines in its cells tagged ``solution``."""
    names = {}
    for source in cells(ROOT / f"book/solutions/{chapter}.md", "solution"):
        exec(source, names)
    return names


def wrong_answers(chapter):
    spec = importlib.util.spec_from_file_location(chapter, ROOT / f"tests/answers/{chapter}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WRONG


NAMES = [(module.stem, p.name) for module in MODULES
         for p in importlib.import_module(f"csq_book.puzzles.{module.stem}").PUZZLES]  # fmt: skip


@pytest.mark.parametrize("chapter, name", NAMES)
def test_the_solution_is_right(chapter, name):
    verdict = puzzles.judge(solutions(chapter)[name])
    assert verdict.right and verdict.text == "Right."


@pytest.mark.parametrize("chapter, name", NAMES)
def test_typical_wrong_answers_are_rejected_with_a_reason(chapter, name):
    answers = wrong_answers(chapter)[name]
    assert len(answers) >= 3
    for answer in answers:
        answer.__name__ = name
        verdict = puzzles.judge(answer)
        assert not verdict.right and verdict.text.startswith("Not right: "), answer


@pytest.mark.parametrize("chapter, name", NAMES)
def test_the_page_asks_for_it_and_shows_an_empty_answer(chapter, name):
    code = [c for c in cells(ROOT / f"book/chapters/{chapter}.md") if f"puzzles.check({name})" in c]
    assert len(code) == 1
    names = {"puzzles": type("Quiet", (), {"check": staticmethod(lambda answer: None)}), "torch": torch}
    exec(code[0], names)
    assert "Not solved yet" in puzzles.judge(names[name]).text
    puzzle = puzzles.get(name)
    assert puzzle.draw(puzzle.examples[0], puzzle.spec(*puzzle.examples[0]), None)


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda p: p.stem)
def test_every_chapter_has_puzzles_and_three_exercises_with_solutions(page):
    assert {chapter for chapter, _ in NAMES} >= {page.stem}
    exercises = page.read_text("utf8").split("## Exercises")[1].split("\n## ")[0]
    answers = (ROOT / f"book/solutions/{page.stem}.md").read_text("utf8")
    assert re.findall(r"^### (\d)\. ", exercises, re.M) == ["1", "2", "3"]
    assert re.findall(r"^## (\d)\. ", answers, re.M) == ["1", "2", "3"]
    assert f"../solutions/{page.stem}.md" in exercises


def double(x):
    return 2 * x


PUZZLE = puzzles.Puzzle(double, [(torch.tensor([1.0, 2.0]),)], lambda *_: None)


@pytest.fixture
def one(monkeypatch):
    monkeypatch.setattr(puzzles, "puzzles", lambda: {"double": PUZZLE})


@pytest.mark.parametrize("code, says", [
    ("lambda x: x * 2.0", "Right."),
    ("lambda x: ...", "Not solved yet"),
    ("lambda x: None", "Not solved yet"),
    ("lambda x: 1 / 0", "raises ZeroDivisionError"),
    ("lambda x: x", "[2.0, 4.0] is wanted, and it gives [1.0, 2.0]"),
    ("lambda x: x[:1]", "the shape (2,) is wanted"),
    ("lambda x: 'two'", "is wanted, and it gives 'two'"),
    ("lambda x: x.mul_(2).mul_(2).div_(2)", "Right."),  # what it does to its argument hurts nobody
])  # fmt: skip
def test_the_verdict_says_what_is_wrong(one, code, says):
    answer = eval(code)
    answer.__name__ = "double"
    assert says in puzzles.judge(answer).text


def test_an_unknown_name_is_named_with_near_ones():
    def bits_off(codes, planes):
        return codes

    with pytest.raises(ValueError, match="bits_off.*bits_of"):
        puzzles.judge(bits_off)


def test_check_draws_and_prints_for_right_wrong_and_failing_answers(capsys):
    for name, text in (("right", "Right."), ("wrong", "Not right"), ("failing", "raises")):
        answer = {"right": lambda c, p: (c.abs() >> torch.arange(p).view(-1, 1)) & 1, "wrong": lambda c, p: c,
                  "failing": lambda c, p: c.no}[name]  # fmt: skip
        answer.__name__ = "bits_of"
        puzzles.check(answer)
        assert text in capsys.readouterr().out
