"""One rule for names the library does not know: say which, and name the near ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """Text of an error for an unknown name: ``unknown recipe 'digts'; did you mean digits?``"""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}"
    return f"unknown {kind} {name!r}; {hint}"
