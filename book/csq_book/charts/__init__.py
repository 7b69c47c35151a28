"""Charts that compute in the reader's browser: the method's formulas with sliders, and no kernel.

Each function returns a :class:`Live` chart. On the built page it is a picture (for print, and for readers
without scripts) that a live Vega-Lite chart replaces; the site serves the scripts itself
(book/_ext/vega.py). In Colab and JupyterLab the notebook loads them from the network. The formulas are
Vega expressions; tests evaluate them and compare them with the library on a grid of values.

Needs altair; the pictures need vl-convert-python too.
"""

from .formulas import gate, one_weight, pull, staircase, straight_through
from .live import SCRIPT, STYLE, Live
from .records import front, histogram, masks

ALL = (staircase, one_weight, straight_through, gate, pull)
"""The charts that need no recorded run; :func:`histogram`, :func:`masks` and :func:`front` take one."""

__all__ = [
    "ALL", "Live", "SCRIPT", "STYLE", "front", "gate", "histogram", "masks", "one_weight", "pull", "staircase",
    "straight_through",
]  # fmt: skip
