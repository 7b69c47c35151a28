"""What makes a run: its model, data and functions, told apart by digests that every process computes alike.

A function or class of the user's is told by its source text, one of a library by its name. What a function reads from
other modules of the user, or from files, is not seen.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import json
import numbers
import sys
import types
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Data
from ..modules import plain_name, unwrap

MOST = 2**28  # bytes of a split's inputs, and of its targets, that are looked at; of more, an even sample
LIBRARIES = {"csq_mini", "numpy", "torch", "torchvision"} | sys.stdlib_module_names
CHANGING = {"numpy"} | sys.stdlib_module_names  # whose objects change as they are used: loggers, generators


def identity(model: nn.Module, data: Data, loss: Any, metric: Any) -> dict[str, str]:
    """A line for each thing beside the recipe that decides the result of a run."""
    return {
        "model": fingerprint(model), "data": describe_data(data), "augment": describe(data.augment),
        "prepare": describe(data.prepare), "loss": describe(loss), "metric": describe(metric),
    }  # fmt: skip


def describe(thing: Any) -> str:
    """Name and digest of a function or object; two that differ in code, defaults, closure or attributes differ.

    An attribute ``csq_identity``, a text, stands for all that: for functions that carry something which changes.
    """
    if thing is None or hasattr(thing, "csq_identity"):
        return str(thing and thing.csq_identity)
    return f"{_name(thing if hasattr(thing, '__qualname__') else type(thing))} {_digest(thing)}"


def fingerprint(model: nn.Module) -> str:
    """Class, shapes, initial weights, and code (with what is frozen, or in evaluation mode) in one line."""
    shapes, values = hashlib.sha256(), hashlib.sha256()
    for key, t in sorted(unwrap(model).state_dict(keep_vars=True).items()):
        if isinstance(t, Tensor):  # what get_extra_state gives are attributes, and so in the code
            shapes.update(f"{plain_name(key)} {tuple(t.shape)} {t.dtype}".encode())
            values.update(_bytes(t))
    still = [name for name, p in unwrap(model).named_parameters() if not p.requires_grad]
    still += [name for name, part in unwrap(model).named_modules() if model.training and not part.training]
    name, code = type(model).__name__, _digest([unwrap(model), list(map(plain_name, still))])
    return f"{name} {shapes.hexdigest()[:12]}, weights {values.hexdigest()[:12]}, code {code}"


def describe_data(data: Data) -> str:
    """Name and sizes, and a digest of all that the splits hold, or of an even sample where that is too much."""
    splits, digest, most = (data.train, data.valid, data.test), hashlib.sha256(), 1
    for t in (torch.as_tensor(t) for split in splits for t in split):
        stride = -(-t.nbytes // MOST) or 1
        digest.update(f"{tuple(t.shape)} {t.dtype}".encode())
        digest.update(_bytes(t[::stride]))
        most = max(most, stride)
    sizes = " + ".join(str(len(y)) for _, y in splits)
    return f"{data.name}, {sizes}, sha256 {digest.hexdigest()[:12]}" + (f" of every {most}th input" if most > 1 else "")


def _bytes(t: Tensor) -> Any:
    t = t.detach().cpu()
    return (t.to_dense() if t.layout != torch.strided else t).contiguous().flatten().view(torch.uint8).numpy()


def _name(thing: Any) -> str:
    module = getattr(thing, "__module__", None)
    return f"{'__main__' if module == '__mp_main__' else module}.{thing.__qualname__}"  # as in multiprocessing


def _of_library(thing: Any) -> bool:
    module = getattr(thing, "__module__", None) or "builtins"
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return module.partition(".")[0] in LIBRARIES or "-packages" in file


def _digest(thing: Any) -> str:
    text = json.dumps(_parts(thing, set())).encode("utf8", "backslashreplace")
    return hashlib.sha256(text).hexdigest()[:12]


def _parts(value: Any, met: set[int]) -> Any:
    """What a value is, as nested lists of text; ``met`` are the ids of functions and objects told already."""
    value = getattr(value, "_torchdynamo_orig_callable", value)  # what torch.compile wrapped
    unfold = next(unfold for kind, unfold in UNFOLD if isinstance(value, kind))
    if unfold in (_of_function, _of_class, _of_module, _of_object):
        if id(value) in met:
            return "as before"
        met.add(id(value))
    inner = unfold(value)
    if isinstance(inner, str):
        return inner
    parts = [_parts(part, met) for part in inner]
    return [type(value).__name__, *(sorted(parts, key=json.dumps) if isinstance(value, Set) else parts)]


def _of_tensor(t: Tensor) -> str:
    if t.grad_fn or t.is_meta or nn.parameter.is_lazy(t):  # computed, so no part of what computes; or without values
        return f"{t.dtype}"
    return f"{t.dtype} {tuple(t.shape)} {hashlib.sha256(_bytes(t)).hexdigest()}"


def _of_array(array: np.ndarray) -> Any:
    return [array.tolist()] if array.dtype.hasobject else [str(array.dtype), array.shape, array.tobytes()]


def _of_function(function: types.FunctionType) -> list[Any]:
    """Name, text, defaults, closure, and the globals that it names."""
    if _of_library(function):
        return [_name(function)]
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    names = sorted(_names(function.__code__) & function.__globals__.keys())
    used = {name: function.__globals__[name] for name in names}
    return [_name(function), _text(function.__code__), function.__defaults__, function.__kwdefaults__, cells, used]


def _names(code: types.CodeType) -> set[str]:
    own = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(_names(c) for c in code.co_consts if isinstance(c, types.CodeType)))


def _text(code: types.CodeType) -> str:
    """The source of a function where there is one, of a lambda its own part of the line; else the compiled code."""
    spans: list[Any] = [span for span in code.co_positions() if None not in span and span[3]]
    try:
        lines, first = inspect.findsource(code)
    except (OSError, TypeError, IndexError):
        inner = [_text(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
        return f"{code.co_code.hex()} {inner} {code.co_names} {code.co_varnames}"
    if code.co_name != "<lambda>" or not spans:
        return "".join(inspect.getblock(lines[first:]))
    (top, left), (bottom, right) = min((a, c) for a, _, c, _ in spans), max((b, d) for _, b, _, d in spans)
    cut = [line.encode() for line in lines[top - 1 : bottom]] or [b""]
    cut[-1] = cut[-1][:right]
    return f"{code.co_varnames[: code.co_argcount]} {b''.join(cut)[left:].decode()}"


def _of_class(kind: type) -> list[Any]:
    """Name, bases, methods as they are written (not those that dataclass makes), and other attributes by value."""
    if _of_library(kind):
        return [_name(kind)]
    written = {}
    for name, value in vars(kind).items():
        code = getattr(getattr(value, "fget", None) or getattr(value, "__func__", value), "__code__", None)
        if not code.co_filename.startswith("<string>") if code else not name.startswith("_"):
            written[name] = value
    return [_name(kind), *kind.__bases__, written]


def _of_module(module: nn.Module) -> list[Any]:
    public = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
    parts = {name: part and unwrap(part) for name, part in module._modules.items()}
    return [type(module), public, module._parameters, module._buffers, parts]


def _of_object(value: Any) -> list[Any]:
    if hasattr(value, "__qualname__"):
        return [_name(value)]
    module = type(value).__module__
    if module.partition(".")[0] in CHANGING or module.startswith("torch.utils."):
        return [type(value)]
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return [type(value), getattr(value, "__dict__", {}), [getattr(value, name, None) for name in slots]]


PLAIN = (type(None), str, bytes, numbers.Number, range, slice, torch.dtype, torch.device, Path)
UNFOLD: Sequence[tuple[Any, Callable[[Any], Any]]] = (  # kind -> what it consists of, or a text that tells all
    (PLAIN, repr),
    (Tensor, _of_tensor),
    (np.ndarray, _of_array),
    (Mapping, lambda value: [list(item) for item in value.items()]),
    ((Sequence, Set), list),
    (types.ModuleType, lambda module: module.__name__),
    (functools.partial, lambda value: [value.func, value.args, value.keywords]),
    (types.MethodType, lambda method: [method.__self__, method.__func__]),
    (property, lambda value: [value.fget]),
    ((staticmethod, classmethod), lambda value: [value.__func__]),
    (types.FunctionType, _of_function),
    (type, _of_class),
    (nn.Module, _of_module),
    (object, _of_object),
)
