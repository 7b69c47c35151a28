"""What a quantized layer keeps: its planes, its step and its integers, in one object that is made once.

A hardened layer owns a :class:`Scheme` as ``layer.csq``; the report, the packed file and the ONNX file read it.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .bits import at_least_float32, planes_to_integer, unit_step
from .check import Diverged
from .modules import named_modules
from .planes import DROPPED, FILLED, Planes


@dataclass(frozen=True)
class Scheme:
    """Planes, step and integers of one layer: weight = step * codes, exactly."""

    available: int  # N, the planes there were to choose from
    kept: tuple[int, ...]  # least significant first
    filled: tuple[int, ...]  # those kept that the search had closed
    step: float  # above zero: worth of code 1, float32(step0) * 2^(lowest kept plane)
    codes: Tensor = field(compare=False)  # int16, in the weight's shape

    @property
    def planes(self) -> str:
        """A letter a plane, the most significant first: 1 learned, F filled at the freeze, . dropped."""
        letters = ("F" if b in self.filled else "1" if b in self.kept else "." for b in range(self.available))
        return "".join(letters)[::-1]

    def weight(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """step * codes, multiplied in float32 at least and rounded to ``dtype`` once."""
        wide = torch.promote_types(dtype, torch.float32)
        return (self.codes.to(device, wide) * self.step).to(dtype)


class Integers(NamedTuple):
    """A layer's exact weight, weight = step * codes, as :func:`integers` returns it."""

    codes: Tensor  # int16, in the weight's shape
    step: float  # worth of code 1
    planes: tuple[int, ...]  # kept planes, the least significant first
    shape: torch.Size


@torch.no_grad()
def harden_planes(planes: Planes, name: str = "") -> Scheme:
    """What the planes of the layer ``name`` stand for with every gate hard: 1[x > 0].

    ValueError if a logit or the scale is not finite, or the mask is none that a freeze has made.
    """
    _check_planes(planes, name)
    if planes.held:
        return nearest(planes.held.weight, int(planes.open.sum()), planes.available)
    kept = tuple(planes.open.nonzero().flatten().tolist())
    filled = tuple((planes.mask.round() == FILLED).nonzero().flatten().tolist())
    # Once frozen, p and n begin with the lowest plane kept; until then they have all planes.
    rows, low = (True, 0) if planes.frozen else (planes.open.view(-1, 1), min(kept, default=0))
    codes = planes_to_integer((planes.p > 0) & rows, (planes.n > 0) & rows) >> low
    (scale,) = at_least_float32(planes.scale)
    step0 = float(unit_step(scale, planes.available).abs())
    codes = -codes if scale < 0 else codes  # so that the step is above zero
    if step0 == 0:  # a scale that has vanished: zeros, whatever the bits and the step
        step0, codes = 1.0, torch.zeros_like(codes)
    return Scheme(planes.available, kept, filled, step0 * 2 ** min(kept, default=0), codes.view(planes.shape))


def nearest(weight: Tensor, count: int, available: int = 8) -> Scheme:
    """The weight on ``count`` planes and the step with the least squared error, as a freeze finds them."""
    planes = Planes(weight.detach(), available)
    planes.freeze(count, weight.detach())
    return harden_planes(planes)


def _check_planes(planes: Planes, name: str) -> None:
    for key, tensor in planes.named_parameters():
        if key == "q" and planes.frozen:
            continue
        if tensor.numel() and not all(end.isfinite() for end in tensor.aminmax()):
            raise Diverged(f"layer {name or '(model)'} has diverged: its {key} holds NaN or infinity; go back to a "
                           "checkpoint and lower the learning rate")  # fmt: skip
    if planes.frozen:
        marks, kept = planes.mask.round(), planes.open.nonzero().flatten()
        whole = bool((planes.mask - marks).abs().max() < 0.01) and bool(((marks >= DROPPED) & (marks <= FILLED)).all())
        if not whole or len(kept) != len(planes.p) or len(kept) and int(kept[-1] - kept[0]) >= len(kept):
            raise ValueError(f"layer {name or '(model)'} has planes {planes.mask.tolist()}, which no freeze made: if "
                             "this is an average, make it anew after budget.freeze()")  # fmt: skip


def schemes(model: nn.Module) -> dict[str, tuple[nn.Module, Scheme]]:
    """Quantized layers of a hardened model, or of a converted one as it is at present: name -> (layer, scheme).

    ValueError if there is none, or the weight of a hardened layer has been changed since.
    """
    found: dict[str, tuple[nn.Module, Scheme]] = {}
    for name, module in named_modules(model):
        known: Any = getattr(module, "csq", None)
        if isinstance(known, Planes):
            found[name] = module, harden_planes(known, name)
        elif isinstance(known, Scheme):
            weight: Any = module.weight
            if not torch.equal(known.weight(weight.dtype, weight.device), weight):
                key = f"{name}.weight".lstrip(".")
                raise ValueError(f"{key} is no longer step * integer: it was changed or cast to {weight.dtype} after "
                                 "hardening; change or cast the converted model, and harden that")  # fmt: skip
            found[name] = module, known
    if not found:
        raise ValueError(f"{type(model).__name__} has no quantized layer: call csq.convert(model) first")
    return found


def integers(model: nn.Module) -> dict[str, Integers]:
    """The integers behind each quantized weight of a hardened (or converted) model.

    Returns name -> :class:`Integers`; float32(step) * codes equals the hard weight in every bit. ValueError if nothing
    is quantized, or a hardened weight has been changed since.
    """
    return {name: Integers(s.codes, s.step, s.kept, s.codes.shape) for name, (_, s) in schemes(model).items()}
