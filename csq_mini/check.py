"""Checks and the words of their errors, kept apart so that the method can be read without them."""

import difflib
import fnmatch
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


class Diverged(ValueError):
    """A training has left what numbers can hold: a value became NaN or infinite."""


def whole(name: str, value: object, low: int = 0, high: float = math.inf, hint: str = "") -> int:
    """``value`` as an int, or a ValueError if it is not a whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        span = f"of at least {low}" if high == math.inf else f"from {low} to {int(high)}"
        raise ValueError(f"{name} must be a whole number {span}, got {value!r}{hint}")
    return int(value)


def number(name: str, value: object, low: float = 0, high: float = math.inf, hint: str = "") -> float:
    """``value`` as a float, or a ValueError if it is not a finite number from ``low`` to ``high``."""
    real = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(real) and low <= real <= high):
        span = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} must be a finite number {span}, got {value!r}{hint}")
    return real


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """Text of an error for an unknown name: ``unknown recipe 'digts'; did you mean digits?``"""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}"
    return f"unknown {kind} {name!r}; {hint}"


def matching(kind: str, pattern: str, names: Iterable[str]) -> list[str]:
    """The dotted names that an fnmatch pattern matches, or a ValueError with near names if it matches none."""
    names = list(names)
    hits = fnmatch.filter(names, pattern)
    if not hits:
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
        raise ValueError(
            f"{kind} pattern {pattern!r} matches no layer; near names: {', '.join(near) or 'none'}. "
            "Patterns match whole dotted names: write 'block.*' for all layers inside block"
        )
    return hits


def select(kind: str, named: Mapping[str, T], skip: str | Iterable[str]) -> dict[str, T]:
    """Each thing once, under its first name; left out if any of its names matches a ``skip`` pattern."""
    patterns = (skip,) if isinstance(skip, str) else tuple(skip) if isinstance(skip, Iterable) else (skip,)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(f"{kind} takes patterns of names, such as 'layer1.*', or a tuple of them, got {pattern!r}")
    skipped = {id(named[hit]) for pattern in patterns for hit in matching(kind, pattern, named)}
    first = {id(thing): name for name, thing in reversed(list(named.items())) if id(thing) not in skipped}
    return {name: thing for name, thing in named.items() if first.get(id(thing)) == name}


def check_finite(weight: Tensor, prefix: str = "") -> None:
    """ValueError, its text beginning with ``prefix``, if a weight is infinite or not a number."""
    bad = weight.numel() - int(torch.isfinite(weight).sum())
    if bad:
        raise ValueError(
            f"{prefix}{bad} of {weight.numel()} weights are NaN or infinite: "
            "repair the checkpoint or train with a smaller learning rate"
        )


def check_logits(x: object) -> None:
    """ValueError if ``x`` is no tensor of floats."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"logits must be a tensor of floats, got {what}: torch.tensor(x, dtype=torch.float32) is one")


def check_layer(name: str, layer: Any) -> None:
    """ValueError if a layer cannot be converted."""
    if nn.parameter.is_lazy(layer.weight) or layer.weight.is_meta:
        raise ValueError(f"{name}.weight has no values yet: run one batch through the model, or load it, first")
    for key in ("csq", "float_class"):
        if hasattr(layer, key) and not hasattr(getattr(layer, key), "codes"):  # a scheme, which has codes, may go
            raise ValueError(f"{name} ({type(layer).__name__}) has an attribute {key!r}, a name that the converted "
                             f"layer needs: rename it in your class, or pass skip=({name!r},)")  # fmt: skip
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.sparse):
        raise ValueError(
            f"{name} uses max_norm or sparse gradients, which write into a weight that is computed here: "
            f"set {name}.max_norm = None and {name}.sparse = False, or skip it"
        )
    check_finite(layer.weight, f"{name}.weight: ")


def floats_in_words(model: nn.Module, owners: Mapping[str, Any], convertible: tuple[type, ...]) -> str:
    """Weights that stay float, given the layer that each belongs to: their share, the largest, and what to do.

    Empty for a small share, unless one of the layers is of a convertible class and has no weight of its own: then it is
    weight norm, pruning or another parametrization that keeps it float.
    """
    values = {name: p.numel() for name, p in model.named_parameters() if not nn.parameter.is_lazy(p)}
    share = sum(values[key] for key in owners) / max(sum(values.values()), 1)
    blocked = [k for k, m in owners.items() if isinstance(m, convertible) and "weight" not in vars(m)["_parameters"]]
    if share <= 0.05 and not blocked:
        return ""
    largest = sorted(owners, key=lambda key: (key not in blocked, -values[key]))[:4]
    listed = ", ".join(f"{key} of {type(owners[key]).__name__} ({values[key]} values)" for key in largest)
    more = f" and {len(owners) - len(largest)} more" if len(owners) > len(largest) else ""
    remedy = "; remove weight norm, pruning or other parametrizations before csq.convert" if blocked else ""
    return (f"{listed}{more}, {share:.1%} of the parameters{remedy}. Only weights of convolutions, linear layers "
            "and embeddings become planes; skip the layers by name to say that this is meant")  # fmt: skip


def shown(name: str) -> str:
    """A name from a model or a file, with control characters escaped, so that a terminal can show it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def refuse_tied(model: nn.Module, chosen: Mapping[str, Any]) -> None:
    """ValueError if the weight of a chosen layer is a parameter elsewhere too."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(_address(parameter), []).append(f"{path}.{key}".lstrip("."))
    for module in chosen.values():
        tied = owners[_address(module.weight)]
        if len(tied) > 1:
            raise ValueError(
                f"{' and '.join(tied)} are one tied parameter, which planes would pull apart: give all but one of "
                "them their own copy (m.weight = nn.Parameter(m.weight.detach().clone())), or skip all of these layers"
            )


def _address(parameter: Any) -> int:
    """Equal for two parameters that are one, or views of one; unique where there is no memory yet."""
    placed = not (nn.parameter.is_lazy(parameter) or parameter.is_meta) and parameter.numel()
    return parameter.data_ptr() if placed else -id(parameter)


class Retired(nn.Parameter):
    """A parameter that a freeze has replaced: an optimizer that still holds it is told so, and trains nothing."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(
            "this optimizer was made before budget.freeze(), which replaced the bit logits: make a new one, with "
            "csq.parameter_groups(model, ...), after the freeze (and wrap in DDP, copy for EMA, after it too)"
        )


class Outdated(Tensor):
    """A tensor of a copy made before a freeze: where an average of it fails, the error says what to do."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            try:
                result = func(*args, **(kwargs or {}))
            except RuntimeError as error:
                raise RuntimeError(
                    "this copy was made before budget.freeze(), which replaced the bit logits of the model it is of: "
                    f"make averages (EMA, SWA) anew after the freeze. ({error})"
                ) from None
            kept = isinstance(result, Tensor) and func.__name__ in ("detach", "__get__", "mul", "__mul__", "__rmul__")
            return result.as_subclass(Outdated) if kept else result  # as averages go on to use them

    def __reduce_ex__(self, protocol: Any) -> Any:  # saved as what it was
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(nn.Parameter if isinstance(self, nn.Parameter) else Tensor).__reduce_ex__(protocol)


class OutdatedParameter(Outdated, nn.Parameter):
    """The same of a parameter."""


def refuse_old_wrapper(parameter: Tensor) -> None:
    """RuntimeError if the DDP wrapper at work was made before the freeze made this parameter."""
    wrapper = getattr(DistributedDataParallel, "_active_ddp_module", None)
    if wrapper is not None and all(p is not parameter for p in wrapper._module_parameters):
        raise RuntimeError("this model was wrapped in DDP before budget.freeze(), which replaced the bit logits: "
                           "wrap the model in DDP again after the freeze")  # fmt: skip


def other_phase(name: str, frozen: bool) -> str:
    """Text of an error for planes saved in one phase and loaded into a model in the other."""
    if frozen:
        return f"{name} was saved before budget.freeze(), and this model is frozen: load it into a model not frozen"
    return (f"{name} was saved after budget.freeze(), and this model searches: call "
            "budget.freeze(like=state_dict), then load")  # fmt: skip


def floors(planes: Mapping[str, int], floor: int | Mapping[str, int]) -> dict[str, int]:
    """Planes that each layer keeps at least, from one number or fnmatch patterns, given how many each has."""
    patterns = dict(floor) if isinstance(floor, Mapping) else {"*": floor}
    for pattern, k in patterns.items():
        most = min(planes[name] for name in matching("floor", pattern, planes))
        whole("floor", k, 0, most, hint=f" planes for {pattern!r}")
    return {name: next((k for p, k in patterns.items() if fnmatch.fnmatch(name, p)), 1) for name in planes}


def kept_counts(state: Mapping[str, Tensor], planes: Mapping[str, int]) -> dict[str, int]:
    """How many planes each layer keeps in a state_dict saved after a freeze, given how many each has."""
    counts = {}
    for name, available in planes.items():
        key, logits = (f"{name}.csq.{end}".lstrip(".") for end in ("mask", "q"))
        if key not in state or logits not in state or state[logits].ndim < 2:
            why = "was saved before one" if key in state else f"has no {key}"
            raise ValueError(f"freeze(like=...) needs a state_dict saved after a freeze; this one {why}")
        if len(state[key]) != available:
            raise ValueError(f"{key} is of {len(state[key])} planes, the model has {available}")
        counts[name] = int((state[key] > 0.5).sum())
    return counts
