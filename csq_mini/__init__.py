"""csq-mini: mixed-precision quantization by continuous sparsification, for reading and for use.

    import csq_mini as csq
    csq.convert(model)                          # weights become trainable bit planes
    budget = csq.Budget(model, target=2.0)      # 2 bits a weight, on average over the layers
    ...                                         # your loop: set_temperature, loss + budget.penalty()
    exact = csq.harden(model)                   # a plain torch model on integers
    csq.save_packed(exact, "model.safetensors") # in a file that is as small as its bits

Method: CSQ, Xiao et al., DAC 2023 (arXiv 2212.02770). The book derives it; README.md has the loop.
"""

__version__ = "0.1.0"  # first, because what is imported below writes it into results

import importlib
from typing import Any

from . import data, models, recipes
from .activations import quantize_activations
from .budget import Budget
from .conversion import Integers, convert, harden, integers, set_temperature
from .deploy import fold_batch_norm
from .experiments import reproduce
from .gates import gate, temperature
from .loop import accuracy, parameter_groups, recalibrate
from .onnx_export import export_onnx
from .packed_format import Packed, PackedFileError, verify_packed
from .packing import load_packed, save_packed
from .recipes import Recipe
from .reports import Report, report
from .training import Result, evaluate, fit

__all__ = [
    "Budget", "Integers", "Packed", "PackedFileError", "Recipe", "Report", "Result", "accuracy", "charts", "convert",
    "data", "evaluate", "export_onnx", "fit", "fold_batch_norm", "gate", "harden", "integers", "load_packed",
    "models", "parameter_groups", "plots", "quantize_activations", "recalibrate", "recipes", "report", "reproduce",
    "save_packed", "set_temperature", "temperature", "verify_packed", "widgets",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Drawing brings matplotlib and seaborn along, charts bring altair, labs ipywidgets: imported on first use.
    if name in ("plots", "charts", "widgets"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
