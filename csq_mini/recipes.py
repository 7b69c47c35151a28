"""Recipes: every hyper-parameter of a run in one dataclass, checked before anything starts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .activations import check_activation_bits
from .bits import check_planes
from .check import number, unknown, whole
from .gates import check_temperature
from .optim import KINDS
from .planes import MASKS


@dataclass(frozen=True)
class Recipe:
    """What :func:`csq_mini.fit` does with a model and data.

    Raises ValueError for a bad value and TypeError for an unknown field.

    Attributes:
        target: average paper bits a weight; None trains float weights for the same number of epochs.
        seed: of the batch order, augmentation and dropout (initialise the model yourself).
        planes: N, planes to choose from, 1 to 8.
        skip: fnmatch patterns of layers that stay float.
        masks: "ordered" or "free", see :func:`csq_mini.convert`.
        search_epochs: epochs that learn masks; 0 freezes at once, which gives every layer the same precision.
        finetune_epochs: epochs after the freeze, in which the temperature rises again.
        batch_size: images in a step.
        lr: peak learning rate of each phase, which has a linear warm-up and a cosine to 0.
        optimizer: "sgd", "adam" or "adamw", see :func:`csq_mini.optimizer`.
        logit_lr: peak rate of bit logits; None as there.
        momentum, weight_decay: of the optimizer; see :func:`csq_mini.parameter_groups` for what decays.
        warmup_epochs: length of the warm-up in each phase.
        strength: of the budget, see :class:`csq_mini.Budget`.
        floor: planes that each layer keeps at least.
        hold: for a trained network: the search moves precisions alone. A layer of k planes has its weight rounded to
            the nearest grid of k planes, and that is what the freeze makes of it. Needs ordered masks.
        growth, weighted: False removes this part of the budget's penalty, see :class:`csq_mini.Budget`.
        one_rate: gives every parameter but precisions the rate ``lr``, to see what the rates of the logits are for.
        activation_bits: bits of every ReLU's output, by PACT; None leaves activations float.
        beta_start, beta_end: temperature at both ends of each phase.
        recalibration_batches: batches of up to 512 augmented training images that re-estimate batch norm before a
            hard model is judged; 0 keeps the statistics of the soft weights.
        checkpoint_steps: steps between checkpoints, if the run has a folder.
    """

    target: float | None = 2.0
    seed: int = 0
    planes: int = 8
    skip: tuple[str, ...] = ()
    masks: str = "ordered"
    search_epochs: int = 60
    finetune_epochs: int = 40
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.1
    logit_lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    strength: float = 0.2
    floor: int = 1
    hold: bool = False
    growth: bool = True
    weighted: bool = True
    one_rate: bool = False
    activation_bits: int | None = None
    beta_start: float = 1.0
    beta_end: float = 200.0
    recalibration_batches: int = 20
    checkpoint_steps: int = 200

    def __new__(cls, *args: Any, **fields: Any) -> Recipe:
        known = [f.name for f in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise TypeError(unknown("Recipe field", name, known))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        object.__setattr__(self, "planes", check_planes(self.planes))
        if not isinstance(self.skip, (tuple, list)) or not all(isinstance(p, str) for p in self.skip):
            raise ValueError(f"skip must be a tuple of patterns, such as ('fc',), got {self.skip!r}")
        object.__setattr__(self, "skip", tuple(self.skip))  # a list, as JSON gives it, is welcome
        for name, known in (("masks", MASKS), ("optimizer", KINDS)):
            if getattr(self, name) not in [*known]:
                raise ValueError(unknown(name, getattr(self, name), known))
        for name in ("seed", "search_epochs", "finetune_epochs", "floor", "recalibration_batches"):
            self._set(name, whole, 0, 2**63 - 1)
        for name in ("batch_size", "checkpoint_steps"):
            self._set(name, whole, 1)
        for name in ("hold", "growth", "weighted", "one_rate"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.activation_bits is not None:
            object.__setattr__(self, "activation_bits", check_activation_bits(self.activation_bits))
        for name in ("lr", "momentum", "weight_decay", "warmup_epochs", "strength", "target", "logit_lr"):
            if getattr(self, name) is not None or name not in ("target", "logit_lr"):
                self._set(name, number, 0)
        if self.momentum >= 1:
            raise ValueError(f"momentum must be below 1, got {self.momentum!r}")
        if self.hold and self.masks != "ordered":
            raise ValueError("hold=True needs masks='ordered', got masks='free'")
        if not self.search_epochs + self.finetune_epochs:
            raise ValueError("search_epochs and finetune_epochs are both 0: there is nothing to train")
        for name in ("beta_start", "beta_end"):
            if math.isinf(check_temperature(getattr(self, name))):
                raise ValueError(f"{name} must be finite, got inf: the last step hardens the model anyway")

    def _set(self, name: str, check: Callable[..., float], *span: float) -> None:
        value = getattr(self, name)
        checked = check(name, value, *span)
        if type(value) not in (int, float):  # NumPy's, which JSON cannot hold
            object.__setattr__(self, name, checked)

    def replace(self, **changes: Any) -> Recipe:
        """A checked copy with some fields changed."""
        return Recipe(**{**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values that JSON can hold."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


CIFAR = Recipe(search_epochs=60, finetune_epochs=40, batch_size=256, warmup_epochs=2.0, checkpoint_steps=2000)
IMAGENET = Recipe(
    target=4.0, activation_bits=4, search_epochs=60, finetune_epochs=30, batch_size=512, weight_decay=1e-4,
    warmup_epochs=5.0, checkpoint_steps=1000,
)  # fmt: skip

RECIPES: Mapping[str, Recipe] = {
    "digits": Recipe(search_epochs=15, finetune_epochs=15, batch_size=32, logit_lr=3.0, warmup_epochs=2.0),
    "resnet20-cifar10": CIFAR,
    "vgg19bn-cifar10": CIFAR,
    "resnet20-cifar100": CIFAR,
    # The official code's setting: 600 epochs, masks hard from epoch 595. Its lambda of 0.01 multiplies the plain sum of
    # masks by (average - target) / 8, both over 20 layers alike; as strength of our R that is 0.01 * 20 / 8.
    "paper-resnet20": CIFAR.replace(search_epochs=595, finetune_epochs=5, warmup_epochs=5.0, strength=0.025),
    # We never ran these. Epochs, batch, rate, decay, target and activations are those of the official code's ResNet-50;
    # the phases and all else are the defaults above.
    "resnet18-imagenet": IMAGENET,
    "resnet50-imagenet": IMAGENET,
    "resnet8-cifar10": Recipe(search_epochs=14, finetune_epochs=10),
    "mnist": Recipe(search_epochs=15, finetune_epochs=15, batch_size=64, warmup_epochs=2.0),
}


def get(name: str, **changes: Any) -> Recipe:
    """A recipe by name, with some fields changed: ``get("digits", target=3)``. ValueError for an unknown name."""
    if name not in [*RECIPES]:
        raise ValueError(unknown("recipe", name, RECIPES))
    return RECIPES[name].replace(**changes)
