"""Loading models from packed files."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import models
from ..activations import activation_bits, quantize_activations
from ..conversion import CONVERTIBLE
from ..modules import named_modules, plain_name, state_once, unwrap
from ..planes import has_planes
from ..scheme import Scheme
from .format import DTYPES, Packed, PackedFileError, weight_key
from .save import dtype_name
from .verify import require, verify_packed


def load_packed(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The hardened model in a packed file, in evaluation mode; its outputs are equal in every bit.

    Args:
        path: of the file.
        model: a plain model of the same architecture, to load into; None builds one of ``csq.models``, if the file
            says which.

    Raises:
        PackedFileError: (a ValueError) if the file is damaged, foreign or of a newer format, or does not fit the
            model, which then stays as it is.
        OSError: if there is no such file, or it is a folder, a device or a pipe.
    """
    packed = verify_packed(path)
    try:
        new = _build(packed) if model is None else _with_values(unwrap(model))
        _compare(packed, new)  # before anything is decoded: from here on, sizes in the file are those of the model
        if model is None:
            new = new.to_empty(device="cpu")
        _fill(packed, new)
    except PackedFileError:
        raise
    except Exception as error:  # whatever a model of somebody's does
        raise PackedFileError(f"{path} does not fit the model: {error}") from error
    return new.eval()


def _with_values(model: nn.Module) -> nn.Module:
    for name, t in state_once(model)[0].items():
        require(not (nn.parameter.is_lazy(t) or t.is_meta), f"{name} of the model has no values yet: run one batch "
                "through it, or build it on a device that holds values, first")  # fmt: skip
    return model


def _fill(packed: Packed, model: nn.Module) -> None:
    """Copy the file's values into a model that it fits; an error leaves the values that were there."""
    found = {name: layer.scheme() for name, layer in packed.layers.items()}
    state = {name: _tensor(*entry) for name, entry in packed.floats.items()}
    state |= {weight_key(name): s.weight(DTYPES[packed.layers[name].dtype]) for name, s in found.items()}
    state |= {other: state[first] for other, first in packed.tied.items()}
    tensors, shared = state_once(model)
    for other, first in shared.items():
        problem = f"does not fit: {other} and {first} are one tensor in the model and two in the file"
        require(_same(state[other], state[first]), f"{problem}: give one of them its own copy first")
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        _copy(tensors, state)
        now = state_once(model)[0]
        wrong = [name for name in tensors if name not in now or not _same(now[name].cpu(), state[name])]
        require(not wrong, f"does not fit: the model does not keep what {', '.join(wrong[:3])} is set to")
    except BaseException:
        _copy(tensors, before)
        raise
    _give_schemes(packed, model, found, shared)


def _give_schemes(packed: Packed, model: nn.Module, found: dict[str, Scheme], shared: Mapping[str, str]) -> None:
    """Each quantized layer gets its scheme; so does one that is tied in the file and has a weight of its own here."""
    layers = dict(named_modules(model, remove_duplicate=False))
    schemes = {weight_key(name): scheme for name, scheme in found.items()}
    for module in layers.values():
        if isinstance(vars(module).get("csq"), Scheme):  # of what the model held before
            del module.csq
    for name, module in layers.items():
        key = weight_key(name)
        tied = packed.tied.get(key) if isinstance(module, CONVERTIBLE) and key not in shared else None
        if key in schemes or tied in schemes:
            module.csq = schemes[tied or key]  # type: ignore[assignment]


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors on the CPU are equal in every bit."""
    a, b = (t.contiguous().flatten().view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)


def _build(packed: Packed) -> nn.Module:
    """A model of the file's architecture, on the meta device."""
    known = packed.architecture
    if known is None or known["name"] not in models.MODELS:
        raise PackedFileError(f"its architecture is {'not known' if known is None else repr(known['name'])}: "
                              "build the model and call load_packed(path, model)")  # fmt: skip
    try:
        with torch.device("meta"):
            model = models.get(known["name"])(**known["arguments"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise PackedFileError(f"no {known['name']} takes the arguments {known['arguments']}: {error}") from None
    if packed.activations:
        rest = [n for n, m in model.named_modules() if isinstance(m, nn.ReLU) and n not in packed.activations]
        quantize_activations(model, next(iter(packed.activations.values())), skip=rest)
    return model


def _compare(packed: Packed, model: nn.Module) -> None:
    """Refuse a model that the file does not fit, before the model is changed."""
    if has_planes(model):
        raise PackedFileError("the model has planes: load into a plain one, as it was before csq.convert")
    there = {plain_name(name): bits for name, bits in activation_bits(model).items()}
    require(there == packed.activations, f"does not fit: the file has activations {packed.activations or 'float'}, "
             f"the model {there or 'float'}; call csq.quantize_activations first")  # fmt: skip
    tensors, shared = state_once(model)
    have = {name: f"{dtype_name(name, t)} {list(t.shape)}" for name, t in tensors.items()}
    have |= {other: have[first] for other, first in shared.items()}
    want = {name: f"{dtype} {list(shape)}" for name, (dtype, shape, _) in packed.floats.items()}
    want |= {weight_key(name): f"{layer.dtype} {list(layer.shape)}" for name, layer in packed.layers.items()}
    want |= {other: want[first] for other, first in packed.tied.items()}
    for text, names in (("lacks", want.keys() - have.keys()), ("has, and the file lacks,", have.keys() - want.keys())):
        require(not names, f"does not fit: the model {text} {', '.join(sorted(names)[:3])}")
    for name in want:
        problem = f"does not fit: {name} is {want[name]} in the file and {have[name]} in the model"
        require(want[name] == have[name], problem)
    modules = dict(named_modules(model, remove_duplicate=False))
    for key in map(weight_key, packed.layers):
        module = modules.get(key.rpartition(".")[0])
        require(module is not None and module._parameters.get("weight") is not None,
                f"does not fit: {key} is no parameter of the model")  # fmt: skip


def _tensor(dtype: str, shape: tuple[int, ...], data: memoryview) -> Tensor:
    if not len(data):
        return torch.zeros(shape, dtype=DTYPES[dtype])
    return torch.frombuffer(bytearray(data), dtype=DTYPES[dtype]).view(shape)
