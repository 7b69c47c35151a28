"""Batch norm: its statistics estimated again for hard weights, and folded into the layers before it.

Folding multiplies each output channel of a weight by a float of its own, and rounds: weights are no longer exact
multiples of one step, and outputs change by float rounding. So no other function of the library folds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .modules import copied, unwrap
from .planes import has_planes


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Estimate every batch norm's running statistics again, for the weights the model has now; returns the model.

    Those gathered in training belong to the soft weights; judged with them, a hard model can look far worse than it
    is. The average over all given batches replaces them. Nothing else changes, the training mode included.

    Args:
        model: any; without batch norm nothing happens.
        batches: finite; inputs, or tuples and lists that begin with them, augmented as in training, on any device.

    Raises:
        ValueError: if there is batch norm to estimate but no batch.
    """
    norms: list[Any] = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is not None
    ]
    if not norms:
        return model
    source = iter(batches)
    first = next(source, None)
    if first is None:
        raise ValueError("no batch to recalibrate batch norm on: pass at least one batch of inputs")
    modes = {m: m.training for m in model.modules()}
    momenta = [m.momentum for m in norms]
    try:
        model.eval()
        for norm in norms:
            norm.train().reset_running_stats()
            norm.momentum = None  # a plain average over all batches
        while first is not None:
            x = first[0] if isinstance(first, (tuple, list)) else first
            model(x.to(norms[0].running_mean.device))
            first = next(source, None)
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return model


@dataclass(frozen=True)
class Folded:
    """What :func:`fold_batch_norm` made, and what it changed on the example."""

    model: nn.Module
    layers: tuple[str, ...]  # whose batch norm is gone
    max_error: float  # largest difference of an output
    relative_error: float  # the same, over the largest output
    same_argmax: float  # share of the examples whose largest output is the same one

    def __str__(self) -> str:
        return (f"{len(self.layers)} batch norms folded; largest difference {self.max_error:.2g} "
                f"({self.relative_error:.1g} of the largest output), same class: {self.same_argmax:.1%}")  # fmt: skip


def fold_batch_norm(model: nn.Module, example: Tensor) -> Folded:
    """A copy of a plain model with every batch norm folded into the convolution or linear layer before it.

    The copy is a ``torch.fx.GraphModule`` in evaluation mode, and no longer counts as quantized.

    Args:
        model: plain; ``torch.fx`` must be able to trace it.
        example: inputs on which the difference is measured, in evaluation mode.

    Raises:
        ValueError: if the model still has planes, cannot be traced, or has nothing to fold.
    """
    from torch.fx.experimental.optimization import fuse

    plain = unwrap(model)
    if has_planes(plain):
        raise ValueError("the model still has its planes: fold_batch_norm(csq.harden(model), example)")
    try:
        plain = copied(plain).eval()
        folded: Any = fuse(plain)
    except Exception as problem:  # torch.fx raises many kinds
        raise ValueError(f"torch.fx cannot trace {type(plain).__name__}: {problem}") from problem
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    gone = {n for n, m in plain.named_modules() if isinstance(m, norms)} - {
        n for n, m in folded.named_modules() if isinstance(m, norms)
    }
    if not gone:
        raise ValueError(f"{type(plain).__name__} has no batch norm right after a convolution or linear layer")
    for module in folded.modules():
        module.__dict__.pop("csq", None)
    with torch.no_grad():
        before, after = plain(example), folded(example)
    error = (before - after).abs().max()
    same = (before.argmax(-1) == after.argmax(-1)).float().mean()
    return Folded(folded, tuple(sorted(gone)), float(error), float(error / before.abs().max()), float(same))
