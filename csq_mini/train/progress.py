"""Where a training stands: the step that comes next, what an epoch counts, and the state that says both."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..recipes import Recipe
from . import processes as parallel

STATE = {"phase", "step", "history", "loss", "seconds", "images", "model", "optimizer", "rng", "target", "temperature",
         "still"}  # fmt: skip
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

    loss: Tensor  # sum over the steps, penalties included; stays on the device, so that no step waits
    seconds: float = 0.0
    images: int = 0
    since: float | None = None  # when the clock was last started

    def settle(self, recipe: Recipe, when: str) -> None:
        """Wait for the device, average the loss over the processes, stop the clock; ValueError if it is not finite."""
        if not torch.isfinite(parallel.mean_(self.loss)):
            raise ValueError(f"the loss became {float(self.loss)} by {when}: check that inputs are finite, or lower "
                             f"lr ({recipe.lr}) or logit_lr ({recipe.logit_lr})")  # fmt: skip
        if self.since is not None:
            self.seconds, self.since = self.seconds + time.perf_counter() - self.since, None


def check_state(state: Any, model: dict[str, Any], frozen: bool, phases: list[int], still: list[str]) -> None:
    """ValueError if a state is not of a trainer like the one that these are of.

    Args:
        state: what to check.
        model: the model's state_dict.
        frozen: whether its masks are frozen.
        phases: steps of each phase.
        still: names of the modules that stay in evaluation mode.
    """
    if not isinstance(state, dict) or not set(state) >= STATE or not isinstance(state["model"], dict):
        raise ValueError("this is no state of a Trainer, or one of an older version: pass what its state_dict() gave")
    searched = not any(key.endswith("csq.mask") for key in state["model"])
    if frozen and searched:
        raise ValueError("the state was saved before budget.freeze(), and this model is frozen: make a new Trainer")

    def shapes(tensors: dict[str, Any]) -> set[Any]:
        same_phase = frozen or searched  # else the planes have shapes of their own
        return {(k, v.shape) for k, v in tensors.items() if isinstance(v, Tensor) and (same_phase or "csq." not in k)}

    phase, step, wrong = state["phase"], state["step"], sorted(shapes(state["model"]) ^ shapes(model))
    if wrong or phase not in range(len(phases)) or step not in range(phases[phase] + 1) or state["still"] != still:
        where = f"its model differs in {wrong[0][0]}" if wrong else f"it stands at step {step} of phase {phase} and "
        where += "" if wrong else f"keeps {state['still'] or 'nothing'} in evaluation mode"
        raise ValueError(f"the state is of another training ({where}): make the Trainer as that one was made")
