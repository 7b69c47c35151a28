"""Writing packed files."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..activations import activation_bits
from ..files import __version__, write_whole
from ..modules import plain_name, state_once, unwrap
from ..planes import has_planes
from ..recipes import Recipe
from ..scheme import Scheme, schemes
from .format import DTYPES, FORMAT, KEY, NO_DIGEST, UNTIED, PackedFileError, pack_bits, weight_key
from .verify import parse


def save_packed(model: nn.Module, path: str | Path, recipe: Recipe | None = None) -> int:
    """Write a hardened model into one file, whole or not at all; the same model gives the same bytes.

    A tensor that has several names is stored once. What a state_dict holds beside tensors (``get_extra_state``) is left
    out, with a warning. The file names the SHA-256 of ``recipe``, if there is one. Returns the number of bytes.

    Raises:
        ValueError: if the model is not hardened, a weight was changed since, or the file cannot hold a tensor.
        OSError: if the file cannot be written.
    """
    model = unwrap(model)
    if has_planes(model):
        raise ValueError("the model still has its planes: save_packed(csq.harden(model), path)")
    check_packable(model)
    blob = pack(model, {name: scheme for name, (_, scheme) in schemes(model).items()}, recipe)
    try:
        parse(blob)
    except PackedFileError as error:
        raise ValueError(f"no file can hold this model, for it could not be read back: {error}") from None
    write_whole(path, lambda file: file.write(blob))
    return len(blob)


def check_packable(model: nn.Module) -> None:
    """ValueError if a packed file cannot hold a tensor: to be known before training, not after it.

    What is no tensor is left out of the file, with a warning.
    """
    for name, tensor in state_once(model)[0].items():
        if nn.parameter.is_lazy(tensor) or tensor.is_meta or tensor.layout != torch.strided:
            raise ValueError(f"a packed file cannot hold {name}, which has no values yet or is sparse: "
                             "run one batch through the model, or make it dense, first")  # fmt: skip
        dtype_name(name, tensor)
    left = [plain_name(k) for k, v in unwrap(model).state_dict(keep_vars=True).items() if not isinstance(v, Tensor)]
    if left:
        warnings.warn(f"{', '.join(left)} of {type(model).__name__}'s state is no tensor: a packed file leaves it out, "
                      "and load_packed keeps what the model has", stacklevel=3)  # fmt: skip


def pack(model: nn.Module, found: Mapping[str, Scheme], recipe: Recipe | None = None) -> bytes:
    """The bytes of a packed file, from a plain model and the schemes of its quantized layers."""
    from safetensors.torch import save

    tensors, others = state_once(model)
    found = {plain_name(name): scheme for name, scheme in found.items()}
    tied = _stored_once(tensors, others, found)
    state = {name: t.cpu().contiguous().clone() for name, t in tensors.items()}
    layers = {}
    for name, scheme in found.items():
        key = weight_key(name)
        if key in tied:
            continue
        values, indices, bits = _index(scheme.codes)
        layers[name] = {
            "bits": bits, "dtype": dtype_name(key, state[key]), "planes": scheme.planes,
            "shape": list(scheme.codes.shape), "step": scheme.step,
        } | ({"low": values[0]} if isinstance(values, range) else {"values": list(values)})  # fmt: skip
        state[key] = torch.from_numpy(pack_bits(indices, bits))
    about = {
        "activations": {plain_name(name): bits for name, bits in activation_bits(model).items()},
        "architecture": getattr(model, "csq_architecture", None), "format": FORMAT if tied else UNTIED,
        "layers": layers, "library": __version__, "recipe": recipe and recipe_digest(recipe), "sha256": NO_DIGEST,
    } | ({"tied": tied} if tied else {})  # fmt: skip
    blob = save(state, {KEY: json.dumps(about, sort_keys=True, separators=(",", ":"))})
    return blob.replace(NO_DIGEST.encode(), hashlib.sha256(blob).hexdigest().encode(), 1)


def _stored_once(tensors: dict[str, Tensor], others: dict[str, str], layers: Iterable[str]) -> dict[str, str]:
    """Other name of a tensor -> the name to store it under: its first, but of a layer's weight the first layer's."""
    first = {name: name for name in tensors} | others
    stored: set[str] = set()
    for key in map(weight_key, layers):
        if key not in first:
            raise ValueError(f"the model's state_dict has no {key}: a state_dict hook renames or drops it, "
                             "so remove the hook before you save")  # fmt: skip
        old = first[key]
        if old not in stored:
            tensors[key] = tensors.pop(old)
            first = {name: key if known == old else known for name, known in first.items()}
            stored.add(key)
    return {name: known for name, known in first.items() if name != known}


def recipe_digest(recipe: Recipe) -> str:
    return hashlib.sha256(json.dumps(recipe.to_dict(), sort_keys=True).encode()).hexdigest()


def dtype_name(name: str, tensor: Tensor) -> str:
    """What the file calls a tensor's type; ValueError if it cannot hold it."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    if tensor.dtype not in names:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in names)
        raise ValueError(f"a packed file cannot hold {name}, which is {tensor.dtype}: convert it to one of {known}")
    return names[tensor.dtype]


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
