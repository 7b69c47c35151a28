"""Labs for a notebook with a kernel: move a slider, and the library computes what the picture shows.

``temperature_lab()`` bends the gate, ``budget_lab()`` trains while you change its budget and its temperature,
``scheme_explorer(model_or_path)`` leafs through what a model keeps. Each is made of ipywidgets and works in any
notebook that shows them. Where nobody can move a slider (on a page being built, in a notebook run by a program) a
lab shows a picture of itself and makes no widget.
"""

from .budget import BudgetLab
from .lab import Lab
from .schemes import SchemeExplorer
from .temperature import TemperatureLab

temperature_lab, budget_lab, scheme_explorer = TemperatureLab, BudgetLab, SchemeExplorer

__all__ = ["Lab", "TemperatureLab", "BudgetLab", "SchemeExplorer", "temperature_lab", "budget_lab", "scheme_explorer"]
