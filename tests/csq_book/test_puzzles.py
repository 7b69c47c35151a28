"""Every puzzle accepts the book's solution and rejects typical wrong answers."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted(page.stem for page in (ROOT / "book/chapters").glob("*.md"))
every_chapter = pytest.mark.parametrize("chapter", CHAPTERS)


@pytest.fixture
def puzzles():
    pytest.importorskip("matplotlib", reason='needs pip install -e ".[notebook]"')
    from csq_book import puzzles

    return puzzles


@pytest.fixture
def names(chapter, puzzles):
    """The names of a chapter's puzzles."""
    return [puzzle.name for puzzle in importlib.import_module(f"csq_book.puzzles.{chapter}").PUZZLES]


def cells(page, tag=None):
    import jupytext

    nb = jupytext.reads(page.read_text("utf8"), fmt={"extension": ".md", "format_name": "myst"})
    return [c.source for c in nb.cells if c.cell_type == "code" and (tag is None or tag in c.metadata.get("tags", []))]


def wrong_answers(chapter):
    spec = importlib.util.spec_from_file_location(chapter, Path(__file__).parent / f"answers/{chapter}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WRONG


@every_chapter
def test_the_solutions_are_right(chapter, names, puzzles):
    solutions = {}
    for source in cells(ROOT / f"book/solutions/{chapter}.md", "solution"):
        exec(source, solutions)
    assert len(names) >= 2
    for name in names:
        assert puzzles.grade(solutions[name]) == puzzles.Grade(True, "Right."), name


@every_chapter
def test_typical_wrong_answers_are_rejected_with_a_reason(chapter, names, puzzles):
    answers = wrong_answers(chapter)
    assert set(answers) == set(names) and min(map(len, answers.values())) >= 3
    for name in names:
        for number, answer in enumerate(answers[name]):
            answer.__name__ = name
            grade = puzzles.grade(answer)
            assert not grade.right and grade.text.startswith("Not right: "), (name, number, grade)


@every_chapter
def test_the_page_asks_for_each_puzzle_and_draws_it(chapter, names, puzzles):
    for name in names:
        [code] = [c for c in cells(ROOT / f"book/chapters/{chapter}.md") if f"puzzles.check({name})" in c]
        known = {"puzzles": type("Quiet", (), {"check": staticmethod(lambda answer: None)}), "torch": torch}
        exec(code, known)
        assert "Not solved yet" in puzzles.grade(known[name]).text, name
        puzzle = puzzles.get(name)
        assert puzzle.draw(puzzle.examples[0], puzzle.spec(*puzzle.examples[0]), None)


@every_chapter
def test_a_chapter_has_three_exercises_with_solutions(chapter):
    exercises = (ROOT / f"book/chapters/{chapter}.md").read_text("utf8").split("## Exercises")[1].split("\n## ")[0]
    answers = (ROOT / f"book/solutions/{chapter}.md").read_text("utf8")
    assert re.findall(r"^### (\d)\. ", exercises, re.M) == ["1", "2", "3"]
    assert re.findall(r"^## (\d)\. ", answers, re.M) == ["1", "2", "3"]
    assert f"../solutions/{chapter}.md" in exercises


def double(x):
    return 2 * x


@pytest.mark.parametrize("code, says", [
    ("lambda x: x * 2.0", "Right."),
    ("lambda x: ...", "Not solved yet"),
    ("lambda x: None", "Not solved yet"),
    ("lambda x: 1 / 0", "raises ZeroDivisionError"),
    ("lambda x: x", "[2.0, 4.0] is wanted, and it gives [1.0, 2.0]"),
    ("lambda x: x[:1]", "the shape (2,) is wanted"),
    ("lambda x: 'two'", "is wanted, and it gives 'two'"),
    ("lambda x: x.mul_(2).mul_(2).div_(2)", "Right."),  # it may change its argument
])  # fmt: skip
def test_a_grade_says_what_is_wrong(puzzles, monkeypatch, code, says):
    puzzle = puzzles.Puzzle(double, [(torch.tensor([1.0, 2.0]),)], lambda *_: None)
    monkeypatch.setattr(puzzles, "puzzles", lambda: {"double": puzzle})
    answer = eval(code)
    answer.__name__ = "double"
    assert says in puzzles.grade(answer).text


def test_an_unknown_name_is_refused_with_near_ones(puzzles):
    def bits_off(codes, planes):
        return codes

    with pytest.raises(ValueError, match="bits_off.*bits_of"):
        puzzles.grade(bits_off)


@pytest.mark.parametrize("answer, says", [
    (lambda c, p: (c.abs() >> torch.arange(p).view(-1, 1)) & 1, "Right."),
    (lambda c, p: c, "Not right"),
    (lambda c, p: c.no, "raises"),
], ids=["right", "wrong", "failing"])  # fmt: skip
def test_check_draws_and_prints(puzzles, capsys, answer, says):
    answer.__name__ = "bits_of"
    puzzles.check(answer)
    assert says in capsys.readouterr().out


@pytest.mark.parametrize("answer", [
    lambda x, step, limit: step * (x / step).round().clamp(-limit, limit),  # halves to the even code
    lambda x, step, limit: step * (x / step + 0.5).floor().clamp(-limit, limit),  # halves up
    lambda x, step, limit: step * (x / step - 0.5).ceil().clamp(-limit, limit),  # halves down
    lambda x, step, limit: step * x.sign() * (x.abs() / step + 0.5).floor().clamp(max=limit),  # halves away from zero
], ids=["even", "up", "down", "away"])  # fmt: skip
def test_a_number_halfway_between_two_stairs_may_go_to_either(puzzles, answer):
    answer.__name__ = "staircase"
    x = puzzles.get("staircase").examples[0][0]
    assert ((x / 0.5 * 2).double() % 2 == 1).any()  # there are such numbers
    assert puzzles.grade(answer) == puzzles.Grade(True, "Right.")


@pytest.mark.parametrize("answer, says", [
    (lambda x, step, limit: step * (x / step).floor().clamp(-limit, limit), "there is a nearer stair"),
    (lambda x, step, limit: step * (x / step).round(), "which lies beyond the limit"),
    (lambda x, step, limit: x.clamp(-limit * step, limit * step), "which is no whole number of steps"),
    (lambda x, step, limit: x * float("nan"), "which is no whole number of steps"),
], ids=["below", "no end", "not rounded", "no number"])  # fmt: skip
def test_a_stair_is_told_what_it_lacks(puzzles, answer, says):
    answer.__name__ = "staircase"
    text = puzzles.grade(answer).text
    assert re.search(rf"^Not right: for x = .*, step .* and limit .* it gives .*, (and )?{says}$", text)


@pytest.mark.parametrize("number, says", [
    (-4, "of equal logits the higher plane goes first"),
    (-3, "of equal logits in equal planes the earlier layer goes first"),
])  # fmt: skip
def test_a_wrong_order_of_equal_logits_is_named(puzzles, number, says):
    answer = wrong_answers("budget")["planes_kept"][number]
    answer.__name__ = "planes_kept"
    assert puzzles.grade(answer).text.startswith(f"Not right: {says}: for q = ")


def test_a_long_tensor_is_told_where_it_is_wrong_first(puzzles, monkeypatch):
    puzzle = puzzles.Puzzle(double, [(torch.arange(200.0).view(2, 100) / 10,)], lambda *_: None)
    monkeypatch.setattr(puzzles, "puzzles", lambda: {"double": puzzle})
    answer = lambda x: torch.where(x == 10.3, x, 2 * x)  # noqa: E731
    answer.__name__ = "double"
    assert puzzles.grade(answer).text.endswith("20.6 is wanted at [1, 3], and it gives 10.3")
