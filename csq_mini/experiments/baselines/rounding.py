"""Weights rounded to the nearest grid of so many planes, and the training loss that this leads to."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...batchnorm import kept_in_eval, set_training
from ...conversion import convertible
from ...data import Data
from ...modules import copied
from ...scheme import nearest

IMAGES, BATCHES = 256, 4  # training images that a loss is measured on


class JointLoss:
    """Cross-entropy of a float network whose layers are rounded together, on training images.

    Batch norm works on the statistics of each batch: those that it has gathered belong to the float weights, and would
    make each layer that it follows look more sensitive than it is. The network itself stays as it is.

    Args:
        model: trained, not converted. data: its training images alone are used. seed: which of them.
        skip: patterns of layers that stay float.
    """

    def __init__(self, model: nn.Module, data: Data, seed: int = 0, skip: Iterable[str] = (), batches: int = BATCHES):
        still = kept_in_eval(model)
        self.model = copied(model)
        self.layers: dict[str, Any] = dict(convertible(self.model, skip)[0])
        self.floats = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}
        self.sizes = {name: weight.numel() for name, weight in self.floats.items()}
        self.batches = [data.training_batch(IMAGES, seed, step) for step in range(batches)]
        self.known: dict[tuple[str, int], Tensor] = {}
        set_training(self.model, still)
        for module in self.model.modules():  # no dropout
            module.training &= isinstance(module, nn.modules.batchnorm._NormBase)

    def rounded(self, name: str, count: int) -> Tensor:
        """The weight of a layer on so many planes, computed once."""
        if (name, count) not in self.known:
            weight = self.floats[name]
            self.known[name, count] = nearest(weight, count).weight(weight.dtype, weight.device)
        return self.known[name, count]

    @torch.no_grad()
    def __call__(self, planes: Mapping[str, int]) -> float:
        """The mean loss with these layers rounded to so many planes, and the others float."""
        for name, layer in self.layers.items():
            layer.weight.copy_(self.rounded(name, planes[name]) if name in planes else self.floats[name])
        losses = [F.cross_entropy(self.model(x), y) for x, y in self.batches]
        return float(torch.stack(losses).mean())

    def squared_gradients(self) -> dict[str, Tensor]:
        """The diagonal of the empirical Fisher matrix: mean over images of the squared gradient of each one's loss."""
        model = copied(self.model).eval()
        layers: dict[str, Any] = {name: model.get_submodule(name) for name in self.layers}
        for name, layer in layers.items():
            layer.weight.data.copy_(self.floats[name])
            layer.weight.requires_grad_()
        sums, (x, y) = {name: torch.zeros_like(weight) for name, weight in self.floats.items()}, self.batches[0]
        weights = [layer.weight for layer in layers.values()]
        for image, target in zip(x.split(1), y.split(1)):
            gradients = torch.autograd.grad(F.cross_entropy(model(image), target), weights)
            for total, gradient in zip(sums.values(), gradients):
                total += gradient.square() / len(y)
        return sums
