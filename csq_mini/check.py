"""Arguments checked in one place: numbers in their range, names that exist, patterns that match something."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Iterable
from numbers import Integral, Real


def whole(name: str, value: object, low: int = 0, high: float = math.inf, hint: str = "") -> int:
    """``value`` as an int, or a ValueError if it is not a whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        span = f"of at least {low}" if high == math.inf else f"from {low} to {high:g}"
        raise ValueError(f"{name} must be a whole number {span}, got {value!r}{hint}")
    return int(value)


def number(name: str, value: object, low: float = 0, high: float = math.inf, hint: str = "") -> float:
    """``value`` as a float, or a ValueError if it is not a finite number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, Real) or not (math.isfinite(value) and low <= value <= high):
        span = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} must be a finite number {span}, got {value!r}{hint}")
    return float(value)


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """Text of an error for an unknown name: ``unknown recipe 'digts'; did you mean digits?``"""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}"
    return f"unknown {kind} {name!r}; {hint}"


def matching(kind: str, pattern: str, names: Iterable[str]) -> list[str]:
    """The dotted names that an fnmatch pattern matches, or a ValueError with near names if it matches none."""
    names = list(names)
    hits = fnmatch.filter(names, pattern)
    if not hits:
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
        raise ValueError(
            f"{kind} pattern {pattern!r} matches no layer; near names: {', '.join(near) or 'none'}. "
            "Patterns match whole dotted names: write 'block.*' for all layers inside block"
        )
    return hits
