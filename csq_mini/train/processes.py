"""Training by several processes at once: the result of one process, up to the order of its sums.

Each process takes an equal share of every batch. Gradients are averaged by torch's
DistributedDataParallel, and batch norm takes its statistics over the whole batch (torch's own
SyncBatchNorm does so on GPUs only). Started by ``torchrun``, which sets the environment that
:func:`join` reads; alone, every function here does nothing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..bits import at_least_float32


def rank() -> int:
    """Number of this process, 0 for the one that writes files."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def join(device: str | None = None) -> Iterator[torch.device | None]:
    """Within it, this process belongs to those that torchrun started; yields the device it should use.

    NCCL connects GPUs, one a process, gloo CPUs. Outside torchrun it yields ``device`` as it is.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or processes() > 1:
        yield torch.device(device) if device else None
        return
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    here = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if kind.startswith("cuda") else torch.device(kind)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    dist.init_process_group("nccl" if here.type == "cuda" else "gloo")
    try:
        yield here
    finally:
        dist.destroy_process_group()


def share(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """This process's part of a batch.

    Raises:
        ValueError: if the batch cannot be cut into equal parts.
    """
    x, y = batch
    if len(x) % processes():
        raise ValueError(f"a batch of {len(x)} images cannot be shared equally by {processes()} processes: "
                         f"use a batch_size that is a multiple of {processes()}")  # fmt: skip
    return x[rank() :: processes()], y[rank() :: processes()]


def mean_(value: Tensor) -> Tensor:
    """The tensor averaged over all processes, in place."""
    if processes() > 1:
        dist.all_reduce(value)
        value /= processes()
    return value


def wrap(model: nn.Module) -> nn.Module:
    """The model as the processes train it together; the model itself where there is only one."""
    if processes() == 1:
        return model
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            sync(module)
    with warnings.catch_warnings():  # the argument has a new name, which torch 2.6 does not know
        warnings.simplefilter("ignore", FutureWarning)
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)


def sync(norm: _BatchNorm) -> None:
    """Make a batch norm take its statistics over all processes."""
    if not isinstance(norm, SyncNorm):
        norm.__class__ = type(f"Sync{type(norm).__name__}", (SyncNorm, type(norm)), {})


def alone(model: nn.Module) -> nn.Module:
    """The same model with the plain batch norm that :func:`wrap` replaced."""
    for module in model.modules():
        if isinstance(module, SyncNorm):
            module.__class__ = type(module).__mro__[2]
    return model


class Average(torch.autograd.Function):
    """The mean of a tensor over all processes; each process's gradient is the mean of all gradients too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return mean_(value.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return mean_(grad.clone())


class SyncNorm(_BatchNorm):
    """Mixin for batch norm: statistics over the shares of all processes while training.

    Mean and variance are averages of equal shares, hence those of the whole batch; both are
    differentiated through, so that a gradient reaches every process's inputs.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        dims = [d for d in range(input.ndim) if d != 1]
        (x,) = at_least_float32(input)
        mean = Average.apply(x.mean(dims, keepdim=True))
        var = Average.apply((x - mean).square().mean(dims, keepdim=True))
        self._remember(mean.detach().flatten(), var.detach().flatten(), x.numel() // x.shape[1] * processes())
        y = (x - mean) * (var + self.eps).rsqrt()
        if self.affine:
            y = y * self.weight.view_as(mean) + self.bias.view_as(mean)
        return y.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        weight = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(var * (count / max(count - 1, 1)), weight)


def wait() -> None:
    """Until every process has come here."""
    if processes() > 1:
        dist.barrier()
