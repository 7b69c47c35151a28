"""What all labs have: a picture, a sentence and controls, in a notebook or on a page."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
from collections.abc import Callable
from html import escape
from typing import Any

from .control import Control, draw_buttons
from .picture import WIDTH, Canvas


class Lab:
    """A picture, a sentence and labelled controls.

    The last line of a cell shows it. From code, ``change(name=value)`` does what a control does, ``values`` are
    those that the controls show, ``error`` is what went wrong last (None if nothing did), and ``svg()`` is a
    picture of the lab.
    """

    title = ""
    controls: tuple[Control, ...] = ()

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.error: Exception | None = None
        self._widgets: dict[str, Any] = {}

    # What a lab says of itself

    def picture(self) -> Canvas:
        """What it shows now."""
        raise NotImplementedError

    def words(self) -> str:
        """The picture in a sentence."""
        raise NotImplementedError

    def apply(self, name: str, value: Any) -> None:
        """Take a new value of a control, or refuse it with a ValueError."""
        raise NotImplementedError

    def press(self, name: str) -> None:
        """Do what a button does."""
        getattr(self, name)()

    def tick(self) -> None:
        """One step of a lab that trains; called by the one thread of all labs."""
        raise NotImplementedError

    # What all have

    def change(self, **values: Any) -> None:
        """Set controls by name, as moving them does; an error is raised here, and shown in the widget too.

        Raises:
            ValueError: if there is no such control, or it cannot take the value.
        """
        known = [control.name for control in self.controls if control.kind != "button"]
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"{self.title} has no control {name!r}, only {', '.join(known)}")
            try:
                self.apply(name, value)
                self.error = None
            except Exception as error:
                self.error = error
                raise
            finally:
                self._sync()
                self.show()

    def svg(self) -> str:
        """A picture of the lab with its controls, for a page on which nothing moves."""
        canvas = self.picture()
        for control in self.controls:
            if control.kind != "button":
                control.draw(canvas, self.values[control.name])
        if buttons := [control for control in self.controls if control.kind == "button"]:
            draw_buttons(canvas, buttons)
        for line in textwrap.wrap(self._said(), 68):
            canvas.text(8, canvas.height + 14, line)
            canvas.height += 20
        canvas.height += 8
        return canvas.svg(f"{self.title}: {self._said()}")

    @property
    def widgets(self) -> dict[str, Any]:
        """The ipywidgets by name of control, made on first use; ``box`` holds all, ``figure`` the picture."""
        if not self._widgets:
            self._build()
        return self._widgets

    def show(self) -> None:
        """Bring the widgets up to date, if there are any."""
        if self._widgets:
            try:
                text = self._html()
            except Exception as error:  # a picture that fails must not take the lab with it
                self.error = error
                text = f"<p>{escape(self.title)}</p>"
            self._widgets["figure"].value = text
            self._widgets["error"].value = self._alert()
            self._follow()

    def _follow(self) -> None:
        """What else :meth:`show` brings up to date."""

    def _sync(self) -> None:
        """Let the controls show the values that hold; not called from a thread, where a slider may just be moving."""
        for control in self.controls if self._widgets else ():
            if control.kind != "button":
                self._widgets[control.name].value = self.values[control.name]

    def _said(self) -> str:
        return self.words() + (f" {_name(self.error)}" if self.error else "")

    def _html(self) -> str:
        return self.picture().svg(f"{self.title}: {self.words()}") + (
            f'<p style="max-width: {WIDTH}px; margin: 0; line-height: 1.4">{escape(self.words())}</p>'
        )

    def _alert(self) -> str:
        return f'<p role="alert" style="color: #b00020; margin: 0">{escape(_name(self.error))}</p>' * bool(self.error)

    def _build(self) -> None:
        import ipywidgets

        found = {control.name: control.widget(self.values.get(control.name)) for control in self.controls}
        for control in self.controls:
            if control.kind == "button":
                found[control.name].on_click(lambda _, name=control.name: self._pressed(name))
            else:
                found[control.name].observe(self._moved(control.name), "value")
        buttons = [found[control.name] for control in self.controls if control.kind == "button"]
        others = [found[control.name] for control in self.controls if control.kind != "button"]
        found["figure"], found["error"] = ipywidgets.HTML(), ipywidgets.HTML()
        rows = [*others, ipywidgets.HBox(buttons)] if buttons else others
        found["box"] = ipywidgets.VBox([*rows, *self._extra(found), found["error"], found["figure"]])
        self._widgets = found
        self.show()

    def _extra(self, found: dict[str, Any]) -> list[Any]:
        return []

    def _moved(self, name: str) -> Callable[[Any], None]:
        def moved(event: Any) -> None:
            # Else the lab itself has moved it: a reader cannot move what is disabled.
            if event["new"] != self.values[name] and not self._widgets[name].disabled:
                self._guard(lambda: self.apply(name, event["new"]))

        return moved

    def _pressed(self, name: str) -> None:
        self._guard(lambda: self.press(name))

    def _guard(self, act: Callable[[], None]) -> None:
        """Whatever goes wrong in a control shows in the widget: a notebook would lose it."""
        try:
            self.error = None
            act()
        except Exception as error:
            self.error = error
        self._sync()
        self.show()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        plain = {"text/plain": f"<{self.title}>"}
        if not someone_there():
            return plain | {"image/svg+xml": self.svg()}
        bundle = self.widgets["box"]._repr_mimebundle_() | plain
        # Beside the widget, for whoever opens the saved notebook without a kernel; Colab might take it for the better.
        return bundle if "google.colab" in sys.modules else bundle | {"image/svg+xml": self.svg()}


def _name(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}" if error else ""


def someone_there() -> bool:
    """Whether a person can move what a cell shows: a notebook's front end answers input(), a program does not."""
    if "google.colab" in sys.modules:
        return True
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    there = getattr(getattr(shell, "kernel", None), "_allow_stdin", False)
    return bool(there) and importlib.util.find_spec("ipywidgets") is not None
