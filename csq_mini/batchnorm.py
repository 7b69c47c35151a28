"""Batch norm: its statistics estimated again for hard weights, and folded into the layers before it.

Folding multiplies each output channel of a weight by a float of its own, and rounds: weights are no longer exact
multiples of one step, and outputs change by float rounding. So no other function of the library folds.
"""

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .check import Diverged
from .modules import copied, inputs_of, named_modules, outputs_of, unwrap
from .planes import has_planes


def kept_in_eval(model: nn.Module) -> list[str]:
    """Names of the modules that stay in evaluation mode while the model trains.

    They are those in evaluation mode now, which is how torch's users freeze batch norm; but none of them if the whole
    model is in evaluation mode, as it is after loading or judging, for that says nothing of any part.
    """
    modes = {name: module.training for name, module in named_modules(model)}
    return [name for name, training in modes.items() if not training] if any(modes.values()) else []


def set_training(model: nn.Module, still: list[str]) -> None:
    """Training mode for a model, evaluation mode for its modules named ``still``."""
    model.train()
    modules = dict(named_modules(model)) if still else {}
    for name in still:
        modules[name].training = False


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Estimate every batch norm's running statistics again, for the weights the model has now; returns the model.

    Those gathered in training belong to the soft weights; judged with them, a hard model can look far worse than it
    is. The average over all given batches replaces them. Nothing else changes, the training mode included. Batch norm
    that is in evaluation mode within a model that is not, is frozen: it keeps its statistics.

    Args:
        model: any; without batch norm nothing happens.
        batches: finite; inputs, or tuples and lists that begin with them, augmented as in training, on any device. One
            single example after larger batches is left out, because it has no variance.

    Raises:
        ValueError: if there is batch norm to estimate but no batch, a batch is no tensor, or inputs or new statistics
            are NaN or infinite. The old statistics are back then, as after any error.
    """
    still, modes = kept_in_eval(model), {module: module.training for module in model.modules()}
    norms: dict[str, Any] = {}
    old: dict[Any, tuple[float | None, list[Tensor]]] = {}
    failed = True
    try:
        set_training(model, still)
        norms = {name: m for name, m in named_modules(model) if _has_statistics(m) and m.training}
        old = {norm: (norm.momentum, [t.clone() for t in norm.buffers()]) for norm in norms.values()}
        model.eval()
        for norm in norms.values():
            norm.training, norm.momentum = True, None  # a plain average over all batches
            norm.reset_running_stats()
        if norms:
            _estimate(model, norms, batches)
        failed = False
    finally:
        for norm, (momentum, values) in old.items():
            norm.momentum = momentum
            unused = not norm.num_batches_tracked  # as an auxiliary head, which only training reaches
            for tensor, value in zip(norm.buffers(), values if failed or unused else ()):
                tensor.copy_(value)
        for module, mode in modes.items():
            module.training = mode
    return model


def _has_statistics(module: Any) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None


def _estimate(model: nn.Module, norms: dict[str, Any], batches: Iterable[Any]) -> None:
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor):
        raise ValueError(f"batches must be a list or loader of inputs, got {type(batches).__name__}: pass [inputs]")
    largest, device = 0, next(iter(norms.values())).running_mean.device
    for batch in batches:
        x = _inputs(batch)
        if len(x) > 1 or largest <= 1:
            try:
                model(x.to(device))
            except ValueError as error:
                hint = ": pass batches of more than one example" if len(x) == 1 else ""
                raise ValueError(f"no statistics from a batch {list(x.shape)}: {error}{hint}") from error
        largest = max(largest, len(x))
    if not largest:
        raise ValueError("no batch to recalibrate batch norm on: pass at least one batch of inputs")
    for name, norm in norms.items():
        if not (norm.running_mean.isfinite().all() and norm.running_var.isfinite().all()):
            raise Diverged(f"the new statistics of batch norm {name} are NaN or infinite: a weight before it has "
                           "diverged, or the inputs are too large; the old ones are kept")  # fmt: skip


def _inputs(batch: Any) -> Tensor:
    x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(x, Tensor) or not x.ndim:
        raise ValueError(f"a batch to recalibrate on must be inputs, or a tuple that begins with them, got "
                         f"{type(x).__name__}: pass tensors, as (b['inputs'] for b in batches) does")  # fmt: skip
    if x.is_floating_point() and not x.isfinite().all():
        raise ValueError("a batch to recalibrate on holds NaN or infinity: repair these inputs, or leave them out")
    return x


@dataclass(frozen=True)
class Folded:
    """What :func:`fold_batch_norm` made, and what it changed on the example."""

    model: nn.Module
    layers: tuple[str, ...]  # whose batch norm is gone
    max_error: float  # largest difference of an output
    relative_error: float  # the same, over the largest output
    same_argmax: float  # share of the examples whose largest output is the same one; of the first of several outputs
    kept: tuple[str, ...] = ()  # batch norms that stay

    def __str__(self) -> str:
        stay = f", {', '.join(self.kept)} left" if self.kept else ""
        return (f"{len(self.layers)} batch norms folded{stay}; largest difference {self.max_error:.2g} "
                f"({self.relative_error:.1g} of the largest output), same class: {self.same_argmax:.1%}")  # fmt: skip


FOLDS = {
    nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d, nn.Linear: nn.BatchNorm1d,
    nn.ConvTranspose1d: nn.BatchNorm1d, nn.ConvTranspose2d: nn.BatchNorm2d, nn.ConvTranspose3d: nn.BatchNorm3d,
}  # fmt: skip
"""Layers that take up a batch norm, and which. No subclasses: they may compute something else."""


@torch.no_grad()
def fold_batch_norm(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> Folded:
    """A copy of a plain model with every batch norm folded into the convolution or linear layer before it.

    The copy is a ``torch.fx.GraphModule`` in evaluation mode, and no longer counts as quantized. A batch norm stays if
    the layer before it is used, or its output goes, elsewhere too, or is transposed and has groups.

    Args:
        model: plain; ``torch.fx`` must be able to trace it.
        example: an input, or a tuple of inputs, on which the difference is measured, in evaluation mode.

    Raises:
        ValueError: if the model still has planes, cannot be traced, has nothing to fold, or the copy's outputs differ
            by more than rounding.
    """
    plain = unwrap(model)
    if has_planes(plain):
        raise ValueError("the model still has its planes: fold_batch_norm(csq.harden(model), example)")
    inputs, plain = inputs_of(example), copied(plain).eval()
    before = list(outputs_of(plain(*inputs)).values())
    try:
        traced = symbolic_trace(plain)
    except Exception as problem:  # torch.fx raises many kinds
        raise ValueError(f"torch.fx cannot trace {type(plain).__name__}: {problem}") from problem
    gone, kept = _fold_all(traced)
    if not gone:
        raise ValueError(f"{type(plain).__name__} has no batch norm right after a convolution or linear layer that is "
                         f"used once, and its output nowhere else; there is: {', '.join(kept) or 'none'}")  # fmt: skip
    folded = GraphModule(traced, traced.graph)
    for module in folded.modules():
        module.__dict__.pop("csq", None)
    return _measured(folded, before, list(outputs_of(folded(*inputs)).values()), gone, kept)


def _fold_all(traced: Any) -> tuple[list[str], list[str]]:
    """Fold what can be folded, in place; the names of the batch norms that are gone, and of those that stay."""
    modules, nodes, gone, kept = dict(traced.named_modules()), list(traced.graph.nodes), [], []
    uses = Counter(id(modules[n.target]) for n in nodes if n.op == "call_module")
    read = {n.target.rpartition(".")[0] for n in nodes if n.op == "get_attr"}  # layers whose weight is used by itself
    for node in nodes:
        norm: Any = modules.get(node.target) if node.op == "call_module" else None
        if type(norm) not in FOLDS.values():
            continue
        source: Any = node.args[0] if node.args else None
        layer: Any = modules.get(source.target) if getattr(source, "op", "") == "call_module" else None
        fits = FOLDS.get(type(layer)) is type(norm) and norm.running_mean is not None
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        alone = uses[id(layer)] == 1 and len(source.users) == 1 and source.target not in read
        if not (fits and alone) or (transposed and layer.groups > 1):
            kept.append(node.target)
            continue
        new, statistics = copy.deepcopy(layer), (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        new.weight, new.bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics, transpose=transposed)
        traced.set_submodule(source.target, new)
        modules[source.target], uses[id(new)] = new, 1
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
        gone.append(node.target)
    return sorted(gone), kept


def _measured(folded: nn.Module, before: list[Tensor], after: list[Tensor], gone: list[str], kept: list[str]) -> Folded:
    """The difference between the outputs; ValueError if it is more than rounding."""
    pairs = [(a.float(), b.float()) if a.itemsize < 4 else (a, b) for a, b in zip(before, after) if a.numel()]
    errors = [float((a - b).abs().max()) for a, b in pairs]
    relative = [error / max(float(a.abs().max()), 1e-6) for error, (a, _) in zip(errors, pairs)]
    bound = max([0.01, *(64 * torch.finfo(a.dtype).eps for a in before if a.is_floating_point())])
    if not pairs or not all(r <= bound for r in relative):
        raise ValueError(f"without batch norm {', '.join(gone)} outputs move by {max(relative, default=0):.1g} of the "
                         "largest, no mere rounding: keep it, or give an example that is finite")  # fmt: skip
    same = (before[0].argmax(-1) == after[0].argmax(-1)).float().mean()
    return Folded(folded, tuple(gone), max(errors), max(relative), float(same), tuple(kept))
