"""Training in several processes at once: the result of one process, up to the order of its sums.

Each process takes an equal share of every batch. DistributedDataParallel averages the gradients, and batch norm takes
its statistics over the whole batch (torch's SyncBatchNorm does so on GPUs only). ``torchrun`` starts the processes and
sets the environment that :func:`join` reads. A process on its own sees no difference.
"""

import os
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..bits import at_least_float32
from ..data.dataset import usable


def rank() -> int:
    """Number of this process; number 0 writes the files."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def join(device: str | None = None) -> Iterator[torch.device | None]:
    """Join the processes of torchrun, if it started this one; yields the device to use.

    NCCL connects GPUs, one for each process; gloo connects CPUs.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or count() > 1:
        yield usable(device) if device else None
        return
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    here = usable(f"cuda:{os.environ['LOCAL_RANK']}" if kind.startswith("cuda") else kind)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    dist.init_process_group("nccl" if here.type == "cuda" else "gloo")
    try:
        yield here
    finally:
        dist.destroy_process_group()


def share(size: int) -> slice:
    """This process's part of a batch of ``size`` images; ValueError if there are no equal parts."""
    if size % count():
        raise ValueError(f"a batch of {size} images cannot be shared equally by {count()} processes: "
                         f"use a batch_size that is a multiple of {count()}")  # fmt: skip
    return slice(rank(), None, count())


def mean_(value: Tensor) -> Tensor:
    """The tensor averaged over all processes, in place."""
    if count() > 1:
        dist.all_reduce(value)
        value /= count()
    return value


def wait() -> None:
    if count() > 1:
        dist.barrier()


def wrap(model: nn.Module) -> nn.Module:
    """The model as the processes train it together; the model itself where there is only one."""
    if count() == 1:
        return model
    sync(model)
    with warnings.catch_warnings():  # torch has renamed the argument, and torch 2.6 knows only the old name
        warnings.simplefilter("ignore", FutureWarning)
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)


def sync(model: nn.Module) -> None:
    """Make every batch norm take its statistics over all processes, until :func:`unsync`."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            # nn.Module calls self.forward: an instance's attribute comes before the class's method.
            module.forward = types.MethodType(_synced_forward, module)  # type: ignore[method-assign]


def unsync(model: nn.Module) -> nn.Module:
    """The same model, its batch norms plain again."""
    for module in model.modules():
        if getattr(vars(module).get("forward"), "__func__", None) is _synced_forward:
            del module.forward
    return model


def _synced_forward(norm: _BatchNorm, input: Tensor) -> Tensor:
    """Batch norm over all processes; as their shares are equal, the average of their means is the batch's mean."""
    if not norm.training:
        return type(norm).forward(norm, input)
    dims = [d for d in range(input.ndim) if d != 1]
    (x,) = at_least_float32(input)
    mean = Average.apply(x.mean(dims, keepdim=True))
    var = Average.apply((x - mean).square().mean(dims, keepdim=True))
    _remember(norm, mean.detach().flatten(), var.detach().flatten(), x.numel() // x.shape[1] * count())
    y = (x - mean) * (var + norm.eps).rsqrt()
    if norm.affine:
        y = y * norm.weight.view_as(mean) + norm.bias.view_as(mean)
    return y.to(input.dtype)


@torch.no_grad()
def _remember(norm: _BatchNorm, mean: Tensor, var: Tensor, values: int) -> None:
    """Update the running statistics as torch does; ``values`` is how many values each mean was taken over."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked += 1
    weight = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean, weight)
    norm.running_var.lerp_(var * (values / max(values - 1, 1)), weight)


class Average(torch.autograd.Function):
    """The mean of a tensor over all processes, whose gradient is the mean over all of them too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return mean_(value.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return mean_(grad.clone())
