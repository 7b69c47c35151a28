"""The puzzles of the book: each is a specification, a drawing, and a check that answers at once.

A puzzle is a name and a function that says, slowly, what is wanted. Write a function of that name and
give it to :func:`check`, which draws what went in, what was wanted and what came out, and says
whether it is right, or for which input it is not.
"""

from __future__ import annotations

import copy
import importlib
import inspect
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
        spec: what is wanted, as a slow and plain function; its name is the puzzle's.
        examples: arguments to try, a tuple each. The first is the one that is drawn.
        draw: makes the drawing: ``draw(arguments, wanted, found)``, ``found`` None where there is no answer yet.
        also: a further test of the whole function, for what examples cannot say: what is wrong, in one
            sentence, or None.
    """

    spec: Callable[..., Any]
    examples: Sequence[tuple[Any, ...]]
    draw: Callable[[tuple[Any, ...], Any, Any], Any]
    also: Callable[[Callable[..., Any]], str | None] | None = None

    @property
    def name(self) -> str:
        """What a solution must be called."""
        return self.spec.__name__


@dataclass(frozen=True)
class Verdict:
    """What :func:`judge` says of an answer: whether it is right, and a sentence about it."""

    right: bool
    text: str


def check(answer: Callable[..., Any]) -> None:
    """Draw a puzzle and an answer to it, and print whether it is right; never raises for a wrong one.

    Args:
        answer: your function, called as the puzzle is.

    Raises:
        ValueError: if no puzzle has the function's name.
    """
    from IPython.display import display

    puzzle = get(answer.__name__)
    wanted = _call(puzzle.spec, puzzle.examples[0])
    try:
        found = _call(answer, puzzle.examples[0])
    except Exception:  # the verdict tells which
        found = None
    fits = found is not Ellipsis and found is not None and _complaint(wanted, found, shape_only=True) is None
    display(puzzle.draw(puzzle.examples[0], wanted, found if fits else None))
    print(judge(answer).text)


def judge(answer: Callable[..., Any]) -> Verdict:
    """Whether an answer is right, without a drawing; errors as :func:`check`."""
    puzzle = get(answer.__name__)
    for arguments in puzzle.examples:
        wanted = _call(puzzle.spec, arguments)
        try:
            found = _call(answer, arguments)
        except Exception as error:
            return Verdict(False, f"Not right: for {_show(arguments)} it raises {type(error).__name__}: {error}")
        if found is None or found is Ellipsis:
            return Verdict(False, "Not solved yet: put your code where the three dots are.")
        if problem := _complaint(wanted, found):
            return Verdict(False, f"Not right: for {_show(arguments)} {problem}")
    try:
        problem = puzzle.also(answer) if puzzle.also else None
    except Exception as error:
        problem = f"it raises {type(error).__name__}: {error}"
    return Verdict(False, f"Not right: {problem}") if problem else Verdict(True, "Right.")


def specification(name: str) -> str:
    """The source of a puzzle's specification."""
    return inspect.getsource(inspect.unwrap(get(name).spec))


def get(name: str) -> Puzzle:
    """The puzzle of that name, or a ValueError with near names."""
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
    """The function's value; it gets copies, so that an answer which writes into its arguments spoils nothing."""
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
    if shape_only or torch.allclose(want.double(), have.double(), rtol=1e-4, atol=1e-6, equal_nan=True):
        return None
    return f"{_show(wanted)} is wanted, and it gives {_show(found)}"


def _show(value: Any) -> str:
    """A value in a line, tensors as lists of rounded numbers."""
    if isinstance(value, tuple):
        return ", ".join(_show(v) for v in value)
    if isinstance(value, Tensor):
        value = value.detach()
        numbers = value if value.dtype == torch.bool or not value.is_floating_point() else (value * 1e4).round() / 1e4
        text = str(numbers.double().tolist() if value.is_floating_point() else numbers.tolist())
        return text if len(text) <= 120 else f"a tensor of shape {list(value.shape)}"
    return repr(value) if not isinstance(value, float) else f"{value:.6g}"
