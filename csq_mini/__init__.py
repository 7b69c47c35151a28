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

from . import data, models
from .train import recipes
from .activations import quantize_activations
from .budget import Budget
from .conversion import Integers, convert, harden, integers, set_temperature
from .batchnorm import fold_batch_norm, recalibrate
from .experiments.reproduce import reproduce
from .gates import gate, temperature
from .optim import parameter_groups
from .onnx_export import export_onnx
from .packed.format import Packed, PackedFileError, verify_packed
from .packed.save import load_packed, save_packed
from .train.recipes import Recipe
from .report import Report, report
from .train.fit import Result, accuracy, evaluate, fit

__all__ = [
    "Budget", "Integers", "Packed", "PackedFileError", "Recipe", "Report", "Result", "accuracy", "convert",
    "data", "evaluate", "export_onnx", "fit", "fold_batch_norm", "gate", "harden", "integers", "load_packed",
    "models", "parameter_groups", "plots", "quantize_activations", "recalibrate", "recipes", "report", "reproduce",
    "save_packed", "set_temperature", "temperature", "verify_packed",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "plots":  # brings matplotlib and seaborn along: imported on first use
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
