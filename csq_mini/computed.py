"""The weight that a converted layer computes: it reads like any tensor, and whoever writes into it is told where to."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

HOW = (
    "the weight of a converted layer is computed from its planes, so what is written into it would be lost: set the "
    "planes with layer.csq.load_float(tensor), or change the weight before csq.convert"
)
IN_PLACE = {f"__i{name}__" for name in "add and floordiv lshift mod mul or pow rshift sub truediv xor".split()}


class ComputedWeight(Tensor):
    """A tensor that cannot be written into, nor can what shares its memory: views, ``data``, NumPy arrays.

    What is computed from it is a plain tensor. Writing raises RuntimeError.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target: Any = args[0] if args else next(iter(kwargs.values()), None)
        if type(target) in (tuple, list):  # _foreach functions
            target = next((t for t in target if isinstance(t, cls)), None)
        if isinstance(kwargs.get("out"), cls) or isinstance(target, cls) and _writes(func.__name__, kwargs):
            raise RuntimeError(HOW)
        with torch._C.DisableTorchFunctionSubclass():
            if func.__name__ in ("__repr__", "__format__"):
                args = (plain(args[0]), *args[1:])
            result = func(*args, **kwargs)
            return _guarded(result, target) if isinstance(target, cls) else result

    def set_(self, *args: Any, **kwargs: Any) -> Any:  # torch does not ask about these two
        raise RuntimeError(HOW)

    resize_ = set_

    def __deepcopy__(self, memo: Any) -> Any:
        return copy.deepcopy(plain(self), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return plain(self).__reduce_ex__(protocol)


def computed(weight: Tensor) -> Tensor:
    """The tensor as a :class:`ComputedWeight`; as it is within graphs and transforms, which know plain tensors only."""
    if type(weight) is not Tensor or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return weight
    return weight.as_subclass(ComputedWeight)


def plain(weight: Tensor) -> Tensor:
    """The same tensor, its memory unguarded."""
    with torch._C.DisableTorchFunctionSubclass():
        return weight.as_subclass(Tensor)


def _writes(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether a torch function of this name changes its first argument."""
    in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
    return in_place or name in IN_PLACE or name in ("__setitem__", "__set__") or kwargs.get("inplace") is True


def _guarded(result: Any, weight: Tensor) -> Any:
    """A function's result, guarded where it shares the memory of the weight."""
    if type(result) in (tuple, list):
        return type(result)(_guarded(part, weight) for part in result)
    if isinstance(result, np.ndarray):
        result.flags.writeable = False
    elif type(result) is Tensor and result.layout is weight.layout:
        if result.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr():
            return result.as_subclass(ComputedWeight)
    return result
