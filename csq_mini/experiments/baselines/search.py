"""What a method that finds its own planes does beside the training steps."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...recipes import Recipe
from ...train import Trainer
from .quantizers import quantized


class Search:
    """A search over ``recipe.search_epochs`` that moves the planes of a trainer's model, and then settles them.

    Every state lies in the model, so that a resumed run goes on. A subclass says how, in the three methods below.
    """

    def __init__(self, trainer: Trainer, recipe: Recipe, target: float):
        self.trainer, self.recipe, self.target = trainer, recipe, target
        self.layers: dict[str, Any] = {name: part for name, (_, part) in quantized(trainer.model).items()}
        self.sizes = {name: part.shape.numel() for name, part in self.layers.items()}
        self.total = sum(self.sizes.values())
        self.steps = recipe.search_epochs * trainer.epoch_steps
        trainer.penalty, trainer.on_step = self._penalty, self._after_step
        if not self.steps:
            self.settle()

    def bits(self) -> float:
        """Planes a weight at present, by size."""
        return sum(self.sizes[name] * part.kept() for name, part in self.layers.items()) / self.total

    def _penalty(self) -> Tensor:
        pull = self.penalty()
        return pull if self.trainer.steps_done < self.steps else pull.detach() * 0

    def _after_step(self) -> None:
        self.move()
        if self.trainer.steps_done == self.steps:
            self.settle()

    def penalty(self) -> Tensor:
        """The term that pulls at the planes in the search, 0-dim."""
        raise NotImplementedError

    def move(self) -> None:
        """What is due after a step."""
        raise NotImplementedError

    def settle(self) -> None:
        """Fix the planes for good; the weights go on training."""
        raise NotImplementedError

    def cut(self) -> Mapping[str, int]:
        """Planes that settling took from each layer, so as to end at the target."""
        return {}
