"""Writing packed files, and loading models from them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .. import models
from ..activations import activation_bits, quantize_activations
from ..files import __version__, write_whole
from ..modules import unwrap
from ..planes import has_planes
from ..recipes import Recipe
from ..scheme import Scheme, schemes
from .format import DTYPES, FORMAT, KEY, NO_DIGEST, Packed, PackedFileError, pack_bits, weight_key
from .verify import require, verify_packed


def save_packed(model: nn.Module, path: str | Path, recipe: Recipe | None = None) -> int:
    """Write a hardened model into one file, whole or not at all; the same model gives the same bytes.

    The file names the SHA-256 of ``recipe``, if there is one. Returns the number of bytes.

    Raises:
        ValueError: if the model is not hardened, a weight was changed since, or the file cannot hold a tensor's type.
    """
    model = unwrap(model)
    if has_planes(model):
        raise ValueError("the model still has its planes: save_packed(csq.harden(model), path)")
    blob = pack(model, {name: scheme for name, (_, scheme) in schemes(model).items()}, recipe)
    write_whole(Path(path), lambda file: file.write(blob))
    return len(blob)


def check_packable(model: nn.Module) -> None:
    """ValueError if a packed file cannot hold a tensor's type: to be known before training, not after it."""
    for tensor in unwrap(model).state_dict().values():
        _dtype_name(tensor)


def pack(model: nn.Module, found: Mapping[str, Scheme], recipe: Recipe | None = None) -> bytes:
    """The bytes of a packed file, from a plain model and the schemes of its quantized layers."""
    from safetensors.torch import save

    state = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    layers = {}
    for name, scheme in found.items():
        key = weight_key(name)
        values, indices, bits = _index(scheme.codes)
        layers[name] = {
            "bits": bits, "dtype": _dtype_name(state[key]), "planes": scheme.planes,
            "shape": list(scheme.codes.shape), "step": scheme.step,
        } | ({"low": values[0]} if isinstance(values, range) else {"values": list(values)})  # fmt: skip
        state[key] = torch.from_numpy(pack_bits(indices, bits))
    about = {
        "activations": activation_bits(model), "architecture": getattr(model, "csq_architecture", None),
        "format": FORMAT, "layers": layers, "library": __version__, "recipe": recipe and recipe_digest(recipe),
        "sha256": NO_DIGEST,
    }  # fmt: skip
    blob = save(state, {KEY: json.dumps(about, sort_keys=True, separators=(",", ":"))})
    return blob.replace(NO_DIGEST.encode(), hashlib.sha256(blob).hexdigest().encode(), 1)


def recipe_digest(recipe: Recipe) -> str:
    return hashlib.sha256(json.dumps(recipe.to_dict(), sort_keys=True).encode()).hexdigest()


def load_packed(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The hardened model in a packed file, in evaluation mode; its outputs are equal in every bit.

    Args:
        path: of the file.
        model: a plain model of the same architecture, to load into; None builds one of ``csq.models``, if the file
            says which.

    Raises:
        PackedFileError: (a ValueError) if the file is damaged, foreign or of a newer format, or does not fit the
            model, which then stays as it is.
    """
    packed = verify_packed(path)
    new = _build(packed) if model is None else unwrap(model)
    _compare(packed, new)  # before anything is decoded: from here on, sizes in the file are those of the model
    if model is None:
        new = new.to_empty(device="cpu")
    state = {name: _tensor(*entry) for name, entry in packed.floats.items()}
    found = {name: layer.scheme() for name, layer in packed.layers.items()}
    state |= {weight_key(name): s.weight(DTYPES[packed.layers[name].dtype]) for name, s in found.items()}
    new.load_state_dict(state, strict=True)
    for name, scheme in found.items():
        new.get_submodule(name).csq = scheme  # type: ignore[assignment]
    return new.eval()


def _build(packed: Packed) -> nn.Module:
    """A model of the file's architecture, on the meta device."""
    known = packed.architecture
    if known is None or known["name"] not in models.MODELS:
        raise PackedFileError(f"its architecture is {'not known' if known is None else repr(known['name'])}: "
                              "build the model and call load_packed(path, model)")  # fmt: skip
    with torch.device("meta"):
        try:
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
    there = activation_bits(model)
    require(there == packed.activations, f"does not fit: the file has activations {packed.activations or 'float'}, "
             f"the model {there or 'float'}; call csq.quantize_activations first")  # fmt: skip
    have = {name: f"{_dtype_name(t)} {list(t.shape)}" for name, t in model.state_dict().items()}
    want = {name: f"{dtype} {list(shape)}" for name, (dtype, shape, _) in packed.floats.items()}
    want |= {weight_key(name): f"{layer.dtype} {list(layer.shape)}" for name, layer in packed.layers.items()}
    for text, names in (("lacks", want.keys() - have.keys()), ("has, and the file lacks,", have.keys() - want.keys())):
        require(not names, f"does not fit: the model {text} {', '.join(sorted(names)[:3])}")
    for name in want:
        problem = f"does not fit: {name} is {want[name]} in the file and {have[name]} in the model"
        require(want[name] == have[name], problem)
    for name in packed.layers:
        parameters = dict(model.get_submodule(name).named_parameters(recurse=False))
        require("weight" in parameters, f"does not fit: {weight_key(name)} is no parameter of the model")


def _dtype_name(tensor: Tensor) -> str:
    names = {dtype: name for name, dtype in DTYPES.items()}
    if tensor.dtype not in names:
        raise ValueError(f"a packed file cannot hold {tensor.dtype}: convert the tensor first")
    return names[tensor.dtype]


def _tensor(dtype: str, shape: tuple[int, ...], data: memoryview) -> Tensor:
    if not len(data):
        return torch.zeros(shape, dtype=DTYPES[dtype])
    return torch.frombuffer(bytearray(data), dtype=DTYPES[dtype]).view(shape)


def _index(codes: Tensor) -> tuple[tuple[int, ...] | range, np.ndarray, int]:
    """Values, the index of each code among them, and the bits that an index takes (report.stored_bits)."""
    flat = codes.reshape(-1).cpu().numpy()
    if not flat.size:
        return range(0, 1), flat.astype(np.uint16), 0
    low, high = int(flat.min()), int(flat.max())
    offset = (flat - low).astype(np.uint16)
    there = np.flatnonzero(np.bincount(offset, minlength=high - low + 1))
    span, table = (high - low).bit_length(), (len(there) - 1).bit_length()
    if span <= table:
        return range(low, high + 1), offset, span
    place = np.zeros(high - low + 1, np.uint16)
    place[there] = np.arange(len(there))
    return tuple((there + low).tolist()), place[offset], table
