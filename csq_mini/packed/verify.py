"""Reading and checking a packed file. Nothing in it is trusted, and its size bounds the memory used."""

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .format import DTYPES, FLOATS, FORMAT, KEY, NO_DIGEST, Packed, PackedFileError, PackedLayer, weight_key

FIELDS = {"bits", "dtype", "planes", "shape", "step"}
MAX_HEADER = 2**24


def verify_packed(path: str | Path) -> Packed:
    """Read a packed file without a model, and check its structure, ranges, digest and every code.

    Raises:
        PackedFileError: saying what is wrong.
    """
    blob = Path(path).read_bytes()
    try:
        return _parse(blob)
    except PackedFileError as error:
        raise PackedFileError(f"{path}: {error}") from None


def _parse(blob: bytes) -> Packed:
    require(len(blob) >= 10, "too short for a packed model")
    (length,) = struct.unpack("<Q", blob[:8])
    require(length <= min(len(blob) - 8, MAX_HEADER), "truncated, or no safetensors file: its header does not fit")
    header = _object(blob[8 : 8 + length], "header")
    metadata = header.pop("__metadata__", None)
    require(isinstance(metadata, dict) and list(metadata) == [KEY] and isinstance(metadata[KEY], str),
             "a safetensors file, but not one that csq.save_packed wrote")  # fmt: skip
    about = _object(metadata[KEY].encode("utf8", "surrogatepass"), "metadata")
    form: Any = about.get("format")
    require(type(form) is int and form >= 1, f"format {form!r} is no version")
    require(form <= FORMAT, f"format {form} is newer than this library reads ({FORMAT}): update csq-mini")
    _check_digest(blob, about.get("sha256"))
    tensors = dict(_tensors(header, memoryview(blob)[8 + length :]))
    layers: Any = about.get("layers")
    require(isinstance(layers, dict) and bool(layers), "it names no quantized layer")
    read = {name: _layer(name, entry, tensors) for name, entry in layers.items()}
    library: Any = about.get("library")
    recipe = about.get("recipe")
    require(isinstance(library, str) and (recipe is None or isinstance(recipe, str)), "library or recipe is no text")
    return Packed(read, tensors, _architecture(about.get("architecture")), _activations(about.get("activations")),
                  recipe, library, about["sha256"], len(blob), 8 + length)  # fmt: skip


def require(holds: bool, problem: str) -> None:
    """PackedFileError with this text unless the condition holds."""
    if not holds:
        raise PackedFileError(problem)


def _object(text: bytes, what: str) -> dict[str, Any]:
    """A JSON object without duplicate names, its NaN and infinities read as None."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        require(len({k for k, _ in pairs}) == len(pairs), f"its {what} names something twice")
        return dict(pairs)

    try:
        value = json.loads(text.decode("utf8"), object_pairs_hook=unique, parse_constant=lambda c: None)
    except PackedFileError:
        raise
    except (ValueError, RecursionError):
        raise PackedFileError(f"its {what} is not JSON: damaged, or no packed model") from None
    require(isinstance(value, dict), f"its {what} is not a JSON object")
    return value


def _check_digest(blob: bytes, digest: Any) -> None:
    require(isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None, "it has no sha-256")
    place = blob.find(digest.encode())  # it stands in the header, so before any tensor
    require(place >= 0, "its sha-256 is written in an odd way")
    cleared = hashlib.sha256(blob[:place])
    cleared.update(NO_DIGEST.encode())
    cleared.update(memoryview(blob)[place + 64 :])
    require(cleared.hexdigest() == digest, "its contents do not match its sha-256: it is damaged, fetch it again")


def _tensors(header: dict[str, Any], payload: memoryview) -> Iterator[tuple[str, tuple[str, tuple[int, ...], Any]]]:
    """Every tensor of the file; together they must cover the payload without gap or overlap."""
    end = 0
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    for name, (dtype, shape, start, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        require(start == end, f"tensor {name!r} overlaps another, or leaves a gap")
        size = math.prod(shape) * DTYPES[dtype].itemsize
        require(stop - start == size and stop <= len(payload), f"tensor {name!r} lies about its size")
        yield name, (dtype, shape, payload[start:stop])
        end = stop
    require(end == len(payload), f"{len(payload) - end} bytes at its end belong to no tensor")


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    require(isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}, f"tensor {name!r} is odd")
    require(isinstance(entry["dtype"], str) and entry["dtype"] in DTYPES, f"tensor {name!r} has an unknown type")
    offsets = entry["data_offsets"]
    require(_naturals(offsets) and len(offsets) == 2, f"tensor {name!r} has no place in the file")
    return entry["dtype"], _shape(name, entry["shape"]), offsets[0], offsets[1]


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**48 for v in value)


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    require(_naturals(shape) and len(shape) <= 8, f"{name!r} has no sound shape")
    require(math.prod(max(n, 1) for n in shape) < 2**48, f"{name!r} has a shape too large to be true")
    return tuple(shape)


def _layer(name: str, entry: Any, tensors: dict[str, Any]) -> PackedLayer:
    """The layer of a metadata entry, with its payload taken out of ``tensors``."""
    require(isinstance(entry, dict) and FIELDS <= set(entry) and set(entry) - FIELDS in ({"low"}, {"values"}),
             f"layer {name!r} has other fields than the format")  # fmt: skip
    bits, step, planes, dtype = (entry[key] for key in ("bits", "step", "planes", "dtype"))
    require(type(bits) is int and 0 <= bits <= 9, f"layer {name!r}: {bits!r} stored bits")
    sound = type(step) is float and (0 < step < math.inf if dtype == "F64" else 2**-149 <= step < 2**128)
    require(sound, f"layer {name!r}: {step!r} is no step")
    require(isinstance(planes, str) and re.fullmatch("[1F.]{1,8}", planes) is not None, f"layer {name!r}: odd planes")
    require(isinstance(dtype, str) and dtype in FLOATS, f"layer {name!r} has a weight of type {dtype!r}")
    shape = _shape(name, entry["shape"])
    kind, size, payload = tensors.pop(weight_key(name), (None, None, b""))
    wanted = (math.ceil(math.prod(shape) * bits / 8),)
    require(kind == "U8" and size == wanted, f"layer {name!r} has a payload of {size}, not {wanted} bytes")
    layer = PackedLayer(name, shape, dtype, planes, step, bits, _values(name, entry, bits), payload)
    _check_codes(layer)
    return layer


def _values(name: str, entry: dict[str, Any], bits: int) -> tuple[int, ...] | range:
    """The code that each index stands for."""
    if "low" in entry:
        require(type(entry["low"]) is int and abs(entry["low"]) < 2**8, f"layer {name!r}: codes out of range")
        return range(entry["low"], entry["low"] + 2**bits)
    values = entry["values"]
    sound = isinstance(values, list) and all(type(v) is int and abs(v) < 2**8 for v in values)
    require(sound and values == sorted(set(values)) and 1 <= len(values) <= 2**bits,
             f"layer {name!r} has no sound table of values")  # fmt: skip
    return tuple(values)


def _check_codes(layer: PackedLayer) -> None:
    """Require a value for each index, codes that fit the planes, and zeros to fill the last byte."""
    used = np.zeros(2**layer.bits, bool)
    if layer.bits == 0:
        used[0] = layer.weights > 0  # one value for all: nothing to decode, whatever the shape says
    else:
        for indices in layer.indices():
            used[indices] = True
    there = np.flatnonzero(used)
    require(there.size == 0 or there[-1] < len(layer.values), f"layer {layer.name!r} uses a value not in its table")
    sound = all(abs(layer.values[i]) <= layer.limit for i in there)
    require(sound, f"layer {layer.name!r} has codes that its planes cannot hold")
    spare = 8 * len(layer.payload) - layer.weights * layer.bits
    require(not spare or layer.payload[-1] >> (8 - spare) == 0, f"layer {layer.name!r} is padded with ones")


def _architecture(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    require(isinstance(value, dict) and set(value) == {"name", "arguments"} and isinstance(value["name"], str)
             and isinstance(value["arguments"], dict)
             and all(type(v) is int and 0 < v < 2**16 for v in value["arguments"].values()),
             "its architecture is not a name and whole numbers")  # fmt: skip
    return value


def _activations(value: Any) -> dict[str, int]:
    sound = isinstance(value, dict) and all(type(v) is int and 1 <= v <= 8 for v in value.values())
    require(sound, "its activations are not names with 1 to 8 bits")
    return value
