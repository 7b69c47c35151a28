"""Labs for a notebook with a kernel: move a slider, and the library computes what the picture shows.

``temperature_lab()`` bends the gate, ``budget_lab()`` trains while you change its budget and its temperature,
``scheme_explorer(model_or_path)`` leafs through what a model keeps. Each is made of ipywidgets, with pictures in
plain SVG, for any notebook that shows widgets. Where nobody can move a slider (a page being built, a notebook run
by a program) a lab shows a picture of itself, and no widget is made. All training happens in one thread beside
the kernel, a step at a time. Needs ipywidgets.
"""

# Imports run one way: picture, control and lab; from these the labs, and search, which the budget lab drives.
from .budget import BudgetLab, budget_lab
from .control import Control
from .lab import Lab, someone_there
from .picture import Canvas, Panel, nice_ticks
from .schemes import SchemeExplorer, scheme_explorer
from .search import Search, Worker
from .temperature import TemperatureLab, temperature_lab

__all__ = [  # in the order of the book's page
    "Canvas", "Panel", "nice_ticks", "Control", "Lab", "someone_there", "TemperatureLab", "temperature_lab",
    "SchemeExplorer", "scheme_explorer", "Worker", "Search", "BudgetLab", "budget_lab",
]  # fmt: skip
