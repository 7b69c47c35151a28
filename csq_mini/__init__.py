"""csq-mini: mixed-precision quantization by continuous sparsification, for reading and for use.

    import csq_mini as csq
    csq.convert(model)                          # weights become trainable bit planes
    budget = csq.Budget(model, target=2.0)      # 2 bits a weight, on average over the layers
    ...                                         # your loop: set_temperature, loss + budget.penalty(progress)
    exact = csq.harden(model)                   # a plain torch model on integers
    csq.save_packed(exact, "model.safetensors") # in a file that is as small as its bits

Method: CSQ, Xiao et al., DAC 2023 (arXiv 2212.02770). The book derives it; README.md has the loop.
"""

import importlib
from typing import Any

from . import data, models, recipes
from .activations import quantize_activations
from .batchnorm import fold_batch_norm, recalibrate
from .budget import Budget
from .conversion import convert, harden, set_temperature
from .experiments.pretrained import pretrained
from .experiments.reproduce import reproduce
from .files import __version__
from .gates import gate, temperature
from .onnx_export import export_onnx
from .optim import optimizer, parameter_groups
from .packed import Packed, PackedFileError, load_packed, save_packed, verify_packed
from .recipes import Recipe
from .report import Report, report
from .scheme import Integers, integers
from .train import Result, Trainer, accuracy, evaluate, fit

__all__ = [
    "Budget", "Integers", "Packed", "PackedFileError", "Recipe", "Report", "Result", "Trainer", "__version__",
    "accuracy", "convert", "data", "evaluate", "export_onnx", "fit", "fold_batch_norm", "gate", "harden",
    "integers", "load_packed", "models", "optimizer", "parameter_groups", "plots", "pretrained", "quantize_activations",
    "recalibrate", "recipes", "report", "reproduce", "save_packed", "set_temperature", "temperature",
    "verify_packed",
]  # fmt: skip

models.pretrained = pretrained  # type: ignore[attr-defined]  # the older name


def __getattr__(name: str) -> Any:
    if name == "plots":  # brings matplotlib and seaborn along: imported on first use
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
