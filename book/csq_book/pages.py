"""What the text of a page is made with: sentences with numbers from the run, and the source of the library.

Both are Markdown, which notebooks, Colab and the built site all show. So the text itself holds no numbers.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path
from typing import Any

PACKAGES = ("csq_mini", "csq_book")


def say(text: str) -> Any:
    """A sentence with numbers from the run, at the end of its cell: ``say(f"It lost **{error:.1%}**.")``."""
    from IPython.display import Markdown

    return Markdown(text)


def source(*things: Any, docstring: bool = False) -> Any:
    """The installed source of functions, methods or classes, each under the name of its file.

    Args:
        things: functions, classes, methods or properties.
        docstring: whether to show their docstrings too.

    Raises:
        TypeError: for a thing without Python source.
    """
    from IPython.display import Markdown

    parts = []
    for thing in things:
        thing = inspect.unwrap(getattr(thing, "fget", None) or thing)
        code = textwrap.dedent(inspect.getsource(thing))
        code = code if docstring else _without_docstrings(code)
        parts.append(f"# {_file(thing)}\n{code.strip()}\n")
    return Markdown("```python\n" + "\n\n".join(parts) + "```")


def _file(thing: Any) -> str:
    """The file of a thing, from its package on."""
    parts = Path(inspect.getsourcefile(thing) or "").parts
    first = next((i for i, part in enumerate(parts) if part in PACKAGES), len(parts) - 1)
    return "/".join(parts[first:])


def _without_docstrings(code: str) -> str:
    lines, drop = code.splitlines(), set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            text = node.body[0]
            if len(node.body) > 1:
                drop |= set(range(text.lineno, (text.end_lineno or text.lineno) + 1))
            # an empty line after the docstring would be left at the head of the body
            after = (text.end_lineno or 0) + 1
            if drop and after <= len(lines) and not lines[after - 1].strip():
                drop.add(after)
    return "\n".join(line for number, line in enumerate(lines, 1) if number not in drop)
