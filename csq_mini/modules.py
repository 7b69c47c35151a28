"""A model without its wrappers, each of its tensors once, copies of it, what it takes and what it gives."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode

WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)
COMPILED = "_orig_mod"  # what torch.compile calls the module that it wraps


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a (Distributed)DataParallel, AveragedModel or torch.compile wrapper, or the model itself.

    ValueError if it is no ``torch.nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"a model must be a torch.nn.Module, got {model!r:.80}")
    if isinstance(model, WRAPPERS):
        return unwrap(model.module)
    inner = getattr(model, COMPILED, None)
    return unwrap(inner) if isinstance(inner, nn.Module) else model


def plain_name(name: str) -> str:
    """A dotted name without what torch.compile puts into it where it wraps a part of a model."""
    return ".".join(part for part in name.split(".") if part != COMPILED)


def named_modules(model: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """As torch's, of the model without its wrappers and by :func:`plain_name`."""
    for name, module in unwrap(model).named_modules(remove_duplicate=remove_duplicate):
        if COMPILED not in module._modules:
            yield plain_name(name), module


def owner_of(key: str) -> str:
    """Name of the layer that a parameter belongs to, given the parameter's; a parametrized layer owns its originals."""
    owner = plain_name(key).rpartition(".")[0]
    return f".{owner}.".partition(".parametrizations.")[0].strip(".")


def inputs_of(example: Any) -> tuple[Tensor, ...]:
    """An example as a tuple of inputs; ValueError if it is no tensor and no tuple of tensors, each with a batch."""
    inputs = example if isinstance(example, tuple) else (example,)
    for x in inputs:
        if not isinstance(x, Tensor) or not x.ndim:
            kind = "a tensor of no dimension" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"example must be a tensor [batch, ...] or a tuple of such tensors, got {kind}: "
                             "torch.as_tensor(array) makes one of a NumPy array")  # fmt: skip
    return inputs


def outputs_of(value: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors in what a model returns, by the keys of dicts and places in tuples and lists, joined by dots.

    A tensor alone is "output"; of a tuple they are "output", "output1" and so on.
    """
    if isinstance(value, Tensor):
        return {name or "output": value}
    found: dict[str, Tensor] = {}
    keyed = isinstance(value, Mapping)
    for key, part in value.items() if keyed else enumerate(value) if isinstance(value, (tuple, list)) else ():
        found |= outputs_of(part, f"{name}.{key}" if name else str(key) if keyed else f"output{key or ''}")
    return found


def state_once(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parameters and buffers of a model's state, each under its first name; and its other names, name -> first name.

    Two names are one where modules or parameters are shared. What a state_dict holds beside tensors, from
    ``get_extra_state``, is left out.
    """
    tensors: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    first: dict[Any, str] = {}
    for key, tensor in unwrap(model).state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            continue
        name = plain_name(key)
        known = first.setdefault(_memory(tensor), name)
        if known == name:
            tensors[name] = tensor if nn.parameter.is_lazy(tensor) else tensor.detach()
        else:
            others[name] = known
    return tensors, others


def _memory(tensor: Tensor) -> Any:
    """Equal for two tensors that are one; unique where there is no memory yet, or, as in a sparse one, none to name."""
    if nn.parameter.is_lazy(tensor) or tensor.is_meta or not tensor.numel() or tensor.layout != torch.strided:
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> Any:
    """A deep copy of a model without its wrappers; ``memo`` as in :func:`copy.deepcopy`.

    A tensor that a forward pass left as an attribute, such as a loss of its own, is copied without its graph, where
    ``copy.deepcopy`` would refuse. Parts that torch.compile has wrapped are plain again.
    """
    with _Detached():
        new = copy.deepcopy(unwrap(model), memo)
    for module in list(new.modules()):
        for name, child in module._modules.items():
            if child is not None and isinstance(getattr(child, COMPILED, None), nn.Module):
                module._modules[name] = unwrap(child)
    return new


class _Detached(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))
