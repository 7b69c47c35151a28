"""The puzzles of the book: each has a specification, a drawing, and a check that answers at once.

A specification is a slow, plain function that computes what is wanted. Write a function of the same
name and pass it to :func:`check`: it draws the input, what is wanted and what your function returns,
and says whether your answer is right or for which input it is wrong.
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from csq_mini.check import unknown


@dataclass(frozen=True)
class Puzzle:
    """One puzzle of the book.

    Attributes:
        spec: a slow, plain function that computes what is wanted; the puzzle has its name.
        examples: the arguments to try, one tuple each; the first is drawn.
        draw: ``draw(arguments, wanted, found)`` makes the drawing; ``found`` is None while there is no answer.
        also: one more test of the function, for what examples cannot show; returns one sentence about
            what is wrong, or None.
        judge: ``judge(arguments, found)`` where more than one value is right: the property that a value lacks, in
            one sentence, or None. Without it a value must equal that of the specification.
    """

    spec: Callable[..., Any]
    examples: Sequence[tuple[Any, ...]]
    draw: Callable[[tuple[Any, ...], Any, Any], Any]
    also: Callable[[Callable[..., Any]], str | None] | None = None
    judge: Callable[[tuple[Any, ...], Any], str | None] | None = None

    @property
    def name(self) -> str:
        """What a solution must be called."""
        return self.spec.__name__


@dataclass(frozen=True)
class Grade:
    """What :func:`grade` says of an answer: whether it is right, and why not."""

    right: bool
    text: str


def check(answer: Callable[..., Any]) -> None:
    """Draw a puzzle and your answer to it, and print whether the answer is right.

    Args:
        answer: your function, named like the puzzle.

    Raises:
        ValueError: if no puzzle has the function's name. A wrong answer raises nothing.
    """
    from IPython.display import display

    puzzle = get(answer.__name__)
    wanted = _call(puzzle.spec, puzzle.examples[0])
    try:
        found = _call(answer, puzzle.examples[0])
    except Exception:  # the grade says which
        found = None
    fits = found is not Ellipsis and found is not None and _complaint(wanted, found, shape_only=True) is None
    display(puzzle.draw(puzzle.examples[0], wanted, found if fits else None))
    print(grade(answer).text)


def grade(answer: Callable[..., Any]) -> Grade:
    """Whether an answer is right, without drawing or printing anything; raises as :func:`check` does."""
    puzzle = get(answer.__name__)
    for arguments in puzzle.examples:
        wanted = _call(puzzle.spec, arguments)
        try:
            found = _call(answer, arguments)
        except Exception as error:
            return Grade(False, f"Not right: for {_show(arguments)} it raises {type(error).__name__}: {error}")
        if found is None or found is Ellipsis:
            return Grade(False, "Not solved yet: put your code where the three dots are.")
        if problem := _complaint(wanted, found, shape_only=puzzle.judge is not None):
            return Grade(False, f"Not right: for {_show(arguments)} {problem}")
        if puzzle.judge and (problem := puzzle.judge(arguments, found)):
            return Grade(False, f"Not right: {problem}")
    try:
        problem = puzzle.also(answer) if puzzle.also else None
    except Exception as error:
        problem = f"it raises {type(error).__name__}: {error}"
    return Grade(False, f"Not right: {problem}") if problem else Grade(True, "Right.")


def get(name: str) -> Puzzle:
    """The puzzle called ``name``; a ValueError with near names if there is none."""
    if name not in puzzles():
        raise ValueError(unknown("puzzle", name, puzzles()))
    return puzzles()[name]


@cache
def puzzles() -> dict[str, Puzzle]:
    """All puzzles by name, in the order of the chapters' module names."""
    found: dict[str, Puzzle] = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            for puzzle in importlib.import_module(f"{__name__}.{module.name}").PUZZLES:
                if puzzle.name in found:
                    raise ValueError(f"two puzzles are called {puzzle.name!r}")
                found[puzzle.name] = puzzle
    return found


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The function's value. It gets copies: an answer may write into its arguments."""
    return function(*copy.deepcopy(arguments))


def _complaint(wanted: Any, found: Any, shape_only: bool = False) -> str | None:
    """How a value differs from the one wanted; None if it does not."""
    if isinstance(wanted, (tuple, list)):
        if not isinstance(found, (tuple, list)) or len(found) != len(wanted):
            return f"{len(wanted)} values are wanted, and it gives {_show(found)}"
        return next((c for w, f in zip(wanted, found) if (c := _complaint(w, f, shape_only))), None)
    try:
        want, have = torch.as_tensor(wanted), torch.as_tensor(found).detach()
    except (TypeError, ValueError, RuntimeError):
        return f"{_show(wanted)} is wanted, and it gives {_show(found)}"
    if want.shape != have.shape:
        return f"the shape {tuple(want.shape)} is wanted, and it gives {tuple(have.shape)}"
    wrong = ~torch.isclose(want.double(), have.double(), rtol=1e-4, atol=1e-6, equal_nan=True)
    if shape_only or not wrong.any():
        return None
    if _show(want).startswith("a tensor"):  # too long to print: say where it differs first
        place = tuple(wrong.nonzero()[0].tolist())
        return f"{_show(want[place])} is wanted at {list(place)}, and it gives {_show(have[place])}"
    return f"{_show(wanted)} is wanted, and it gives {_show(found)}"


def _show(value: Any) -> str:
    """A value as one line of text; tensors as lists of rounded numbers."""
    if isinstance(value, tuple):
        return ", ".join(_show(v) for v in value)
    if isinstance(value, Tensor):
        numbers = (value.detach().double() * 1e4).round() / 1e4 if value.is_floating_point() else value
        text = str(numbers.tolist())
        return text if len(text) <= 120 else f"a tensor of shape {list(value.shape)}"
    return repr(value) if not isinstance(value, float) else f"{value:.6g}"
