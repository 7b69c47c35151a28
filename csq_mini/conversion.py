"""From a float model to bit planes, and from bit planes to an exact model.

:func:`convert` swaps the class of every convolution, linear and embedding layer for one whose
``weight`` is computed from trainable planes; :func:`harden` returns a plain torch model again, and
:func:`integers` the integers in it. Source: CSQ (arXiv 2212.02770).
"""

from __future__ import annotations

import copy
import difflib
import fnmatch
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .bits import at_least_float32, check_planes, float_to_planes, place_values
from .gates import LOGIT, check_temperature
from .planes import OWN_NAMES, UNDECIDED, CSQLayer, Scheme, csq_class

CONVERTIBLE = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Linear, nn.Embedding,
)  # fmt: skip
"""Module types (and their subclasses) that :func:`convert` changes."""


class Integers(NamedTuple):
    """A layer's exact weight, weight = step * codes, as :func:`integers` returns it."""

    codes: Tensor  # int16, in the weight's shape
    step: float  # worth of code 1: float32(step0) * 2^(lowest kept plane)
    planes: tuple[int, ...]  # kept planes, the least significant first
    shape: torch.Size


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a (Distributed)DataParallel or torch.compile wrapper, or the model itself."""
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return unwrap(model.module)
    inner = getattr(model, "_orig_mod", None)  # torch.compile's OptimizedModule
    return unwrap(inner) if isinstance(inner, nn.Module) else model


def csq_layers(model: nn.Module) -> dict[str, CSQLayer]:
    """The converted layers of a model by dotted name, wrappers removed.

    Raises:
        ValueError: if there is none.
    """
    found = {name: m for name, m in unwrap(model).named_modules() if isinstance(m, CSQLayer)}
    if not found:
        raise ValueError(f"{type(model).__name__} has no converted layer: call csq.convert(model) first")
    return found


def convert(model: nn.Module, planes: int = 8, skip: str | Iterable[str] = ()) -> list[str]:
    """Turn every layer's weight into trainable bit planes, in place.

    Changes each Conv1-3d, ConvTranspose1-3d, Linear and Embedding (subclasses too). Everything else
    stays float. Afterwards the temperature is infinity: the model computes with its float weights
    rounded to N planes. Optimizers, DDP and EMA copies must be made after the conversion.

    Args:
        model: any module with float weights, trained or not.
        planes: N, 1 to 8 planes per layer; a weight is rounded to +-(2^N - 1) steps.
        skip: fnmatch patterns of dotted layer names that stay float, such as ``"layer1.*"``.

    Returns:
        Names of the converted layers.

    Raises:
        ValueError: for planes outside 1..8, a pattern that matches no layer, a weight that is tied,
            or not finite, a model already converted, or with nothing to convert. The model is
            unchanged then.

    Source: CSQ (arXiv 2212.02770), bit-level decomposition and relaxation.
    """
    planes = check_planes(planes)
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        raise ValueError("convert the model before wrapping it in DataParallel or DDP")
    model = unwrap(model)
    if any(isinstance(m, CSQLayer) for m in model.modules()):
        raise ValueError("the model is converted already: converting twice would quantize planes")
    chosen = _select(model, (skip,) if isinstance(skip, str) else tuple(skip))
    _refuse_tied(model, chosen)
    for name, module in chosen.items():
        _check_layer(name, module)
    for module in chosen.values():
        _convert_layer(module, planes)
    return list(chosen)


def _select(model: nn.Module, skip: tuple[str, ...]) -> dict[str, nn.Module]:
    # A module reachable under two names is one layer, skipped if a pattern matches either name.
    names = {name: m for name, m in model.named_modules(remove_duplicate=False) if _own_weight(m) is not None}
    skipped = set()
    for pattern in skip:
        hits = fnmatch.filter(names, pattern)
        if not hits:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or list(names)[:3]
            raise ValueError(
                f"skip pattern {pattern!r} matches no layer; near names: {', '.join(near) or 'none'}. "
                "Patterns match whole dotted names: write 'block.*' for all layers inside block"
            )
        skipped |= {id(names[hit]) for hit in hits}
    chosen: dict[str, nn.Module] = {}
    for name, module in names.items():
        if id(module) not in skipped and all(module is not other for other in chosen.values()):
            chosen[name] = module
    if not chosen:
        raise ValueError(
            f"{type(model).__name__} has nothing to convert"
            + (": every layer is skipped" if skipped else ": no convolution, linear or embedding layer with a weight")
        )
    return chosen


def _own_weight(module: nn.Module) -> nn.Parameter | None:
    """The float parameter ``weight`` of a convertible module; None for any other module."""
    weight = module._parameters.get("weight") if isinstance(module, CONVERTIBLE) else None
    return weight if weight is not None and weight.is_floating_point() else None


def _refuse_tied(model: nn.Module, chosen: dict[str, nn.Module]) -> None:
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(_address(parameter), []).append(f"{path}.{key}".lstrip("."))
    for module in chosen.values():
        tied = owners[_address(module.weight)]
        if len(tied) > 1:
            raise ValueError(
                f"{' and '.join(tied)} are one tied parameter, which planes would pull apart: give one of them its "
                "own copy (m.weight = nn.Parameter(m.weight.detach().clone())), or skip all of these layers"
            )


def _address(parameter: Any) -> int:
    """Equal for two parameters that are one, or views of one; unique where there is no memory yet."""
    placed = not (nn.parameter.is_lazy(parameter) or parameter.is_meta) and parameter.numel()
    return parameter.data_ptr() if placed else -id(parameter)


def _check_layer(name: str, module: nn.Module) -> None:
    weight = _own_weight(module)
    if weight is None or nn.parameter.is_lazy(weight) or weight.is_meta:
        raise ValueError(f"{name}.weight has no values yet: run one batch through the model, or load it, first")
    taken = [key for key in OWN_NAMES if hasattr(module, key) and not isinstance(getattr(module, key), Scheme)]
    if taken:
        raise ValueError(
            f"{name} ({type(module).__name__}) has an attribute {taken[0]!r}, a name that the converted layer needs: "
            f"rename it in your class, or pass skip=({name!r},)"
        )
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.sparse):
        raise ValueError(
            f"{name} uses max_norm or sparse gradients, which write into a weight that is computed here: "
            f"set {name}.max_norm = None and {name}.sparse = False, or skip it"
        )
    try:
        float_to_planes(weight, 1)
    except ValueError as error:
        raise ValueError(f"{name}.weight: {error}") from None


@torch.no_grad()
def _convert_layer(module: Any, planes: int) -> None:
    weight, others = module.weight, dict(module._parameters)
    del others["weight"]

    def parameter(*size: int) -> nn.Parameter:
        return nn.Parameter(weight.new_full(size, LOGIT), requires_grad=weight.requires_grad)

    size = (planes, weight.numel())
    module._parameters = {"p": parameter(*size), "n": parameter(*size), "q": parameter(planes),
                          "scale": parameter(), **others}  # fmt: skip
    module.register_buffer("beta", weight.new_full((), math.inf))
    module.register_buffer("gain", weight.new_ones(()), persistent=False)
    module.register_buffer("place", place_values(planes, weight), persistent=False)
    module.register_buffer("mask", torch.full((planes,), UNDECIDED, dtype=torch.int8, device=weight.device))
    module.shape, module.hard, module.frozen, module.rows = weight.shape, True, False, None
    module.__dict__.pop("csq", None)  # of an earlier hardening
    module.__class__ = csq_class(type(module))
    module.load_float(weight)


def set_temperature(model: nn.Module, beta: float) -> None:
    """Set the temperature of every converted layer; ``math.inf`` makes every gate exactly 1[x > 0].

    Works on the model itself and on DDP and compiled wrappers, without recompiling as a finite
    temperature moves.

    Raises:
        ValueError: if ``beta`` is not a number above zero, or nothing is converted.
    """
    beta = check_temperature(beta)
    for layer in csq_layers(model).values():
        layer.set_beta(beta)


def harden(model: nn.Module) -> nn.Module:
    """A new plain torch model with every gate hard: exactly quantized weights, no planes.

    Its outputs equal those of the source at temperature infinity, bit for bit. The source is left
    untouched, so a model can be judged hard in the middle of its training. Batch-norm statistics
    come along as they are; see :func:`csq_mini.recalibrate`.

    Returns:
        A copy in which each converted layer is its original class again, ``weight`` a parameter,
        and ``layer.csq`` a :class:`Scheme`. Wrappers (DDP, torch.compile) are removed.

    Raises:
        ValueError: if no layer is converted.
    """
    layers = csq_layers(model)
    # deepcopy finds the planes in its memo and leaves them out: they are 16 times the weights.
    planes: dict[int, Any] = {id(t): None for layer in layers.values() for t in (layer.p, layer.n)}
    plain = copy.deepcopy(unwrap(model), planes)
    for name, layer in layers.items():
        _harden_layer(layer, plain.get_submodule(name))
    return plain


@torch.no_grad()
def _harden_layer(layer: CSQLayer, copied: Any) -> None:
    weight = nn.Parameter(layer.hard_weight(), requires_grad=layer.p.requires_grad)
    others = {k: v for k, v in copied._parameters.items() if k not in ("p", "n", "q", "scale")}
    copied._parameters = {"weight": weight, **others}
    for key in ("beta", "gain", "place", "mask"):
        del copied._buffers[key]
    copied._non_persistent_buffers_set -= {"gain", "place"}
    for key in ("shape", "hard", "frozen", "rows"):
        del copied.__dict__[key]
    copied.__class__ = layer.float_class
    scheme, codes = layer.scheme(), _integers("", layer, layer.scheme()).codes
    copied.csq = scheme if torch.equal(_codes_of(weight, scheme), codes) else replace(scheme, codes=codes)


def schemes(model: nn.Module) -> dict[str, tuple[Any, Scheme]]:
    """Quantized layers of a converted or hardened model: name -> (layer, scheme).

    Raises:
        ValueError: if there is none.
    """
    found: dict[str, tuple[Any, Scheme]] = {}
    for name, module in unwrap(model).named_modules():
        if isinstance(module, CSQLayer):
            found[name] = (module, module.scheme())
        elif isinstance(getattr(module, "csq", None), Scheme):
            found[name] = (module, module.csq)
    if not found:
        raise ValueError(f"{type(model).__name__} has no quantized layer: call csq.convert(model) first")
    return found


@torch.no_grad()
def integers(model: nn.Module) -> dict[str, Integers]:
    """The integers behind each quantized weight of a hardened (or converted) model.

    Returns:
        name -> :class:`Integers` ``(codes, step, planes, shape)`` with float32(step) * codes equal
        to the hard weight by torch.equal; ``codes`` is int16 in the weight's shape.

    Raises:
        ValueError: if nothing is quantized, or a hardened weight has been changed since.

    Source: the exactness rules of the book's notation page; CSQ (arXiv 2212.02770).
    """
    return {name: _integers(name, layer, scheme) for name, (layer, scheme) in schemes(model).items()}


def _integers(name: str, layer: Any, scheme: Scheme) -> Integers:
    if isinstance(layer, CSQLayer):
        codes = layer.codes().view(layer.shape) >> min(scheme.kept, default=0)
        return Integers(codes.to(torch.int16), scheme.step, scheme.kept, layer.shape)
    weight = layer.weight.detach()
    codes = _codes_of(weight, scheme) if scheme.codes is None else scheme.codes.to(weight.device)
    (exact,) = at_least_float32(weight)
    if not torch.equal((codes.to(exact.dtype) * scheme.step).to(weight.dtype), weight):
        raise ValueError(f"{name}.weight is no longer step * integer: it was changed after hardening")
    return Integers(codes, scheme.step, scheme.kept, weight.shape)


def _codes_of(weight: Tensor, scheme: Scheme) -> Tensor:
    return (weight.double() / scheme.step).nan_to_num().round().to(torch.int16)
