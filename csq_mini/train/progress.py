"""Where a training stands: the step that comes next, what an epoch counts, and the state that says both."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..check import Diverged
from ..recipes import Recipe
from . import processes as parallel

STATE = {"phase", "step", "history", "loss", "seconds", "images", "model", "optimizer", "rng", "target", "temperature",
         "budget", "still"}  # fmt: skip
"""What the state of a :class:`~csq_mini.Trainer` holds."""


def rate_at(step: int, steps: int, warmup: float) -> float:
    """Learning rate of a step as a fraction of its peak: linear warm-up times a cosine to 0."""
    return min(1.0, (step + 1) / max(warmup, 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))


@dataclass
class Progress:
    """Which step comes next: its phase and its number in the phase."""

    phase: int = 0
    step: int = 0


@dataclass
class Meter:
    """What an epoch counts."""

    loss: Tensor  # sum over the steps; stays on the device, so that no step waits
    seconds: float = 0.0
    images: int = 0
    since: float | None = None  # when the clock was last started

    def settle(self, recipe: Recipe, when: str) -> None:
        """Wait for the device, average the loss over the processes, stop the clock; Diverged if it is not finite."""
        if not torch.isfinite(parallel.mean_(self.loss)):
            raise Diverged(f"the loss became {float(self.loss)} by {when}: check that inputs are finite, or lower "
                           f"lr ({recipe.lr}) or logit_lr ({recipe.logit_lr})")  # fmt: skip
        if self.since is not None:
            self.seconds, self.since = self.seconds + time.perf_counter() - self.since, None


def is_frozen(model: dict[str, Any]) -> bool:
    """Whether a model's state_dict is one after a freeze."""
    return any(key.endswith("csq.q") and t.ndim == 2 for key, t in model.items())
