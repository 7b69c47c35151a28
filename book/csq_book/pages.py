"""What the book's pages use to speak: sentences with numbers of the run, and the library's own source.

Both are Markdown, which a notebook, Colab and the built site all show: the text of a page holds no number.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path
from typing import Any


def say(text: str) -> Any:
    """A sentence whose numbers the run has made: ``say(f"It lost **{error:.1%}**.")``, last in its cell."""
    from IPython.display import Markdown

    return Markdown(text)


def source(*things: Any, docstring: bool = False) -> Any:
    """The library's real source of functions, methods or classes, as it is installed, in colours.

    Args:
        things: functions, classes, methods or properties of ``csq_mini``.
        docstring: whether their docstrings are shown too.

    Raises:
        TypeError: for a thing that has no Python source.
    """
    from IPython.display import Markdown

    parts = []
    for thing in things:
        thing = inspect.unwrap(getattr(thing, "fget", None) or thing)
        code = textwrap.dedent(inspect.getsource(thing))
        code = code if docstring else _without_docstrings(code)
        parts.append(f"# {_place(thing)}\n{code.strip()}\n")
    return Markdown("```python\n" + "\n\n".join(parts) + "```")


def _place(thing: Any) -> str:
    file = Path(inspect.getsourcefile(thing) or "")
    return "/".join(file.parts[file.parts.index("csq_mini") :] if "csq_mini" in file.parts else file.parts[-1:])


def _without_docstrings(code: str) -> str:
    lines, drop = code.splitlines(), set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            text = node.body[0]
            drop |= set(range(text.lineno, (text.end_lineno or text.lineno) + 1)) if len(node.body) > 1 else set()
            # an empty line that the docstring leaves at the head of the body goes with it
            after = (text.end_lineno or 0) + 1
            if drop and after <= len(lines) and not lines[after - 1].strip():
                drop.add(after)
    return "\n".join(line for number, line in enumerate(lines, 1) if number not in drop)
