"""What all labs share: a picture, a sentence and controls, in a notebook or on a page."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from html import escape
from typing import Any, ClassVar

from .picture import WIDTH, Canvas


class Lab:
    """A picture, a sentence and labelled controls; the last line of a cell shows them.

    From code, ``change(name=value)`` does what moving a control does, ``values`` holds what the controls show,
    ``error`` what went wrong last (or None), and ``svg()`` is a picture of the whole lab.
    """

    title: ClassVar[str]
    labels: ClassVar[Mapping[str, str]]  # of every control, by its name; those without a value are buttons

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.error: Exception | None = None
        self._widgets: dict[str, Any] = {}

    # What each lab defines: picture() draws what it shows, words() says it, controls(w) makes the widgets with
    # ipywidgets, and apply(name, value) takes a value or refuses it with a ValueError; a button calls its namesake.

    picture: Callable[[], Canvas]
    words: Callable[[], str]
    controls: Callable[[Any], dict[str, Any]]
    apply: Callable[[str, Any], None]

    def locked(self) -> Collection[str]:
        """Controls that a reader cannot use at present."""
        return ()

    # What all have

    def change(self, **values: Any) -> None:
        """Set controls by name, as moving them does.

        Raises:
            ValueError: for a name that no control has, or a value that it cannot take; the widget shows it too.
        """
        for name, value in values.items():
            if name not in self.values:
                raise ValueError(f"{self.title} has no control {name!r}, only {', '.join(self.values)}")
            self._do(self.apply, name, value)

    def svg(self) -> str:
        """A picture of the lab, for a page on which nothing moves."""
        canvas, said = self.picture(), f"{self.words()} {_text(self.error)}".strip()
        controls = f"Controls, in a notebook: {', '.join(self.labels.values())}."
        for line in [*textwrap.wrap(said, 68), *textwrap.wrap(controls, 68)]:
            canvas.text(8, canvas.height + 14, line)
            canvas.height += 20
        canvas.height += 8
        return canvas.svg(f"{self.title}: {said}")

    @property
    def widgets(self) -> dict[str, Any]:
        """The ipywidgets by control, made on first use; ``box`` holds all, ``figure`` the picture."""
        if not self._widgets:
            self._widgets = self._build()
            self.show()
        return self._widgets

    def show(self, settle: bool = True) -> None:
        """Bring the widgets up to date; ``settle=False`` leaves alone what a reader may be moving."""
        if not self._widgets:
            return
        words, locked = self.words(), self.locked()
        line = f'<p style="max-width: {WIDTH}px; margin: 0; line-height: 1.4">{escape(words)}</p>'
        alert = f'<p role="alert" style="color: #b00020; margin: 0">{escape(_text(self.error))}</p>'
        self._widgets["figure"].value = self.picture().svg(f"{self.title}: {words}") + line
        self._widgets["error"].value = alert if self.error else ""
        for name in self.labels:
            self._widgets[name].disabled = name in locked
            if name in self.values and (settle or name in locked):
                self._widgets[name].value = self.values[name]

    def _do(self, act: Callable[..., Any], *arguments: Any) -> None:
        self.error = None
        try:
            act(*arguments)
        except Exception as error:
            self.error = error
            raise
        finally:
            self.show()

    def _build(self) -> dict[str, Any]:
        import ipywidgets

        found = self.controls(ipywidgets)
        for name, widget in found.items():
            widget.description = self.labels[name]
            if name in self.values:
                widget.layout.width, widget.style.description_width = "min(32rem, 98%)", "13rem"
                widget.observe(lambda event, name=name: self._moved(name, event["new"]), "value")
            else:
                widget.on_click(lambda _, name=name: self._used(getattr(self, name)))
        buttons = ipywidgets.HBox([found[name] for name in found if name not in self.values])
        found |= {"error": ipywidgets.HTML(), "figure": ipywidgets.HTML()}
        others = [found[name] for name in (*self.values, "error", "figure")]
        return found | {"box": ipywidgets.VBox([*others[:-2], buttons, *others[-2:]])}

    def _moved(self, name: str, value: Any) -> None:
        # Otherwise the lab has moved it: a reader cannot move what is disabled.
        if value != self.values[name] and name not in self.locked():
            self._used(self.apply, name, value)

    def _used(self, act: Callable[..., Any], *arguments: Any) -> None:
        with suppress(Exception):  # the lab shows it; a notebook would lose it
            self._do(act, *arguments)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        plain = {"text/plain": f"<{self.title}>"}
        if not someone_there():
            return plain | {"image/svg+xml": self.svg()}
        bundle = self.widgets["box"]._repr_mimebundle_() | plain
        # Beside the widget, for readers of the saved notebook without a kernel. Colab might prefer it to the widget.
        return bundle if "google.colab" in sys.modules else bundle | {"image/svg+xml": self.svg()}


def _text(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}" if error else ""


def someone_there() -> bool:
    """Whether a person can move what a cell shows: the front end of a notebook answers input(), a program does not."""
    if "google.colab" in sys.modules:
        return True
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    there = getattr(getattr(shell, "kernel", None), "_allow_stdin", False)
    return bool(there) and importlib.util.find_spec("ipywidgets") is not None
