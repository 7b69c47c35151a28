"""Training: the trainer, `fit`, run folders, several processes."""

from .fit import Result, fit
from .trainer import Trainer, accuracy, evaluate

__all__ = ["Result", "Trainer", "accuracy", "evaluate", "fit"]
