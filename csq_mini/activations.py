"""Activations on few bits: a ReLU whose clip is learned and whose outputs are integers times a step.

:func:`quantize_activations` puts a :class:`PACT` in place of every ReLU of a model, before or after its weights are
converted. The official code of CSQ learns the clip at 3 bits and fewer, fixes it at 6 above, and takes each batch's
maximum for the step; here it is PACT at every width, so that the step is a constant of the trained model.
Source: PACT (arXiv 1805.06085), eqs. 1 to 3.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .bits import at_least_float32
from .check import Diverged, number, select, whole
from .modules import named_modules, unwrap

MAX_BITS = 8
LEAST_CLIP = 1e-3
"""A clip below this counts as this much, so that the step never vanishes; it still gets its gradient."""


class Levels(torch.autograd.Function):
    """y = step * round(clip(x, 0, alpha) / step), with step = alpha / levels, in float32 at least.

    The integer comes first, then one product, so every output is an exact multiple of the step. The gradient goes
    straight through the rounding: to x where 0 < x < alpha, to alpha where x >= alpha.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, alpha: Tensor, levels: int) -> Tensor:
        wide, clip = _in_float32(x, alpha)
        step = clip / torch.full_like(clip, levels)  # by a plain number a GPU multiplies by its inverse, an ulp off
        return (wide / step).clamp_(0, levels).round_().mul_(step).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha = ctx.saved_tensors
        wide, clip = _in_float32(x, alpha)
        above = torch.where(wide >= clip, grad, 0.0)
        to_x = torch.ops.aten.threshold_backward(grad, x, 0) - above  # that of ReLU, less what is above
        return to_x, above.sum(dtype=clip.dtype).to(alpha.dtype), None


def _in_float32(x: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    wide, clip = at_least_float32(x, alpha)
    return wide, clip.clamp(min=LEAST_CLIP)


class PACT(nn.Module):
    """A ReLU with a learned upper end ``alpha`` and at most 2^bits values: 0, step, ... alpha.

    step = alpha / (2^bits - 1), computed in float32 (float64 in a float64 model); the output has the input's type and
    shape. Gradients of what is clipped move alpha, and weight decay pulls it down, towards finer steps: PACT needs
    that decay (see :func:`csq_mini.parameter_groups`).

    Args:
        bits: 1 to 8. Not part of the state_dict.
        clip: where ``alpha`` (0-dim, in units of the activation) starts, at least ``LEAST_CLIP``.
    """

    def __init__(self, bits: int, clip: float = 6.0):
        super().__init__()
        self.bits = check_activation_bits(bits)
        self.alpha = nn.Parameter(torch.tensor(number("clip", clip, LEAST_CLIP, hint=": 6.0 is usual")))

    def forward(self, x: Tensor) -> Tensor:
        return Levels.apply(x, self.alpha, 2**self.bits - 1)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


def check_activation_bits(bits: int) -> int:
    """``bits`` as an int, or a ValueError if it is not a whole number from 1 to 8."""
    return whole("activation bits", bits, 1, MAX_BITS, hint=": None keeps floats")


def quantize_activations(model: nn.Module, bits: int, clip: float = 6.0, skip: str | Iterable[str] = ()) -> list[str]:
    """Turn every ``nn.ReLU`` and ``nn.ReLU6`` into a :class:`PACT`, in place.

    A module that is used several times, such as the ``relu`` of a torchvision block, stays one module with one clip.
    Subclasses of ReLU stay float, for they may compute something else; so do other activations, ``torch.relu`` in a
    ``forward``, the model's input, and means and sums of quantized activations. Load float checkpoints before this,
    and make optimizers, DDP wrappers and EMA copies after it.

    Args:
        model: any module, its weights converted or not.
        bits: 1 to 8 for each activation.
        clip: where each clip ``alpha`` starts, in units of the activation.
        skip: fnmatch patterns of dotted names of activations that stay float.

    Returns:
        Names of the modules changed.

    Raises:
        ValueError: for a bad argument, or a model with nothing to change or quantized already; it stays unchanged.
    """
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        raise ValueError("quantize activations before wrapping the model in DataParallel or DDP")
    model = unwrap(model)
    if activation_bits(model):
        raise ValueError(f"{type(model).__name__}'s activations are quantized already: start from the float model")
    example = PACT(bits, clip)  # refuses bad numbers before anything changes
    found = {n: m for n, m in model.named_modules(remove_duplicate=False) if type(m) in (nn.ReLU, nn.ReLU6)}
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no nn.ReLU or nn.ReLU6 module to quantize: functions cannot be replaced, so "
            "write torch.relu(x) or F.relu(x) as a module, self.relu = nn.ReLU(), and call that in forward"
        )
    chosen = select("activation", found, skip)
    if not chosen:
        raise ValueError(f"{type(model).__name__} has nothing to quantize: skip={skip!r} leaves no activation")
    like = next((p for p in model.parameters() if p.is_floating_point()), example.alpha)
    for module in chosen.values():
        _become_pact(module, example, like)
    return list(chosen)


def _become_pact(module: Any, example: PACT, like: Tensor) -> None:
    """Swap the module's class, so that hooks and all references to it stay; ``like`` says type and place."""
    for key in ("inplace", "min_val", "max_val"):  # of the ReLU that it was
        module.__dict__.pop(key, None)
    module.__class__ = PACT
    module.bits = example.bits
    module.alpha = nn.Parameter(example.alpha.detach().to(like.device, like.dtype, copy=True))


def activation_bits(model: nn.Module) -> dict[str, int]:
    """Bits of each quantized activation by dotted name, wrappers removed; empty if all are float.

    ValueError if a clip is NaN or infinite.
    """
    found = {name: m for name, m in named_modules(model) if isinstance(m, PACT)}
    for name, pact in found.items():
        if not (pact.alpha.is_meta or pact.alpha.isfinite()):
            raise Diverged(f"the clip {name}.alpha is {pact.alpha.item()}: it has diverged, lower its rate")
    return {name: pact.bits for name, pact in found.items()}
