"""Training: the trainer, `fit`, run folders, several processes."""

from .fit import Result, fit
from .judge import accuracy, evaluate
from .trainer import Trainer

__all__ = ["Result", "Trainer", "accuracy", "evaluate", "fit"]
