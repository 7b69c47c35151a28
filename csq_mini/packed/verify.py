"""Reading and checking a packed file. Nothing in it is trusted, and its size bounds the memory used."""

import hashlib
import json
import math
import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ..files import MAX_FILE, open_regular
from .format import DTYPES, FLOATS, FORMAT, KEY, NO_DIGEST, UNTIED, Packed, PackedFileError, PackedLayer, weight_key

FIELDS = {"bits", "dtype", "planes", "shape", "step"}
MAX_HEADER = 2**24


def verify_packed(path: str | Path) -> Packed:
    """Read a packed file without a model, and check its structure, ranges, digest and every code.

    Raises:
        PackedFileError: saying what is wrong.
        OSError: if there is no such file, or it is a folder, a device or a pipe.
    """
    return read_packed(path)[1]


def read_packed(path: str | Path) -> tuple[bytes, Packed]:
    """The bytes of a packed file and what they hold; its header is checked before the rest is read."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            require(size <= MAX_FILE, f"larger than a packed file can be ({MAX_FILE} bytes)")
            _head(file.read(_header_length(file.read(8), size)), size)
            file.seek(0)
            blob = file.read(size)
            return blob, parse(blob)
        except PackedFileError as error:
            raise PackedFileError(f"{path}: {error}") from None
        except MemoryError:
            raise PackedFileError(f"{path}: its {size} bytes do not fit into memory") from None


def parse(blob: bytes) -> Packed:
    """What the bytes of a packed file hold; PackedFileError saying what is wrong with them."""
    length = _header_length(blob[:8], len(blob))
    about, places = _head(blob[8 : 8 + length], len(blob))
    _check_digest(blob, about.get("sha256"))
    payload = memoryview(blob)[8 + length :]
    tensors = {name: (dtype, shape, payload[start:stop]) for name, (dtype, shape, start, stop) in places.items()}
    layers: Any = about.get("layers")
    require(isinstance(layers, dict) and bool(layers), "it names no quantized layer")
    names = set(tensors)
    read = {name: _layer(name, entry, tensors) for name, entry in layers.items()}
    library: Any = about.get("library")
    recipe: Any = about.get("recipe")
    require(_printable(library) and (recipe is None or _printable(recipe)), "library or recipe is no text")
    tied = _tied(about.get("tied", {}), about["format"], names)
    activations = _activations(about.get("activations"), names | set(tied))
    return Packed(read, tensors, _architecture(about.get("architecture")), activations, recipe, library,
                  about["sha256"], len(blob), 8 + length, tied)  # fmt: skip


def _header_length(start: bytes, size: int) -> int:
    require(len(start) == 8 and size >= 10, "too short for a packed model")
    (length,) = struct.unpack("<Q", start)
    require(length <= min(size - 8, MAX_HEADER), "truncated, or no safetensors file: its header does not fit")
    return length


def _head(text: bytes, size: int) -> tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...], int, int]]]:
    """The metadata, and the place of every tensor, from the header of a file of ``size`` bytes."""
    header = _object(text, "header")
    metadata = header.pop("__metadata__", None)
    require(isinstance(metadata, dict) and list(metadata) == [KEY] and isinstance(metadata[KEY], str),
             "a safetensors file, but not one that csq.save_packed wrote")  # fmt: skip
    about = _object(metadata[KEY].encode("utf8", "surrogatepass"), "metadata")
    form: Any = about.get("format")
    require(type(form) is int and form >= 1, f"format {form!r} is no version")
    require(form <= FORMAT, f"format {form} is newer than this library reads ({FORMAT}): update csq-mini")
    return about, _places(header, size - 8 - len(text))


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


def _places(header: dict[str, Any], payload: int) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """Type, shape, start and end of every tensor; together they must cover the payload without gap or overlap."""
    end = 0
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    places = dict(sorted(entries.items(), key=lambda item: item[1][2:]))
    for name, (dtype, shape, start, stop) in places.items():
        require(start == end, f"tensor {name!r} overlaps another, or leaves a gap")
        size = math.prod(shape) * DTYPES[dtype].itemsize
        require(stop - start == size and stop <= payload, f"tensor {name!r} lies about its size")
        end = stop
    require(end == payload, f"{payload - end} bytes at its end belong to no tensor")
    return places


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    require(_is_name(name), f"tensor {name!r} has a name that no module can have")
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


def _is_name(name: str) -> bool:
    """Whether each part of a dotted name is a name, and nothing in it would drive a terminal."""
    return name.isprintable() and all(name.split("."))


def _printable(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _layer(name: str, entry: Any, tensors: dict[str, Any]) -> PackedLayer:
    """The layer of a metadata entry, with its payload taken out of ``tensors``."""
    require(not name or _is_name(name), f"layer {name!r} has a name that no module can have")
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
    require(isinstance(value, dict) and set(value) == {"name", "arguments"} and _printable(value["name"])
             and isinstance(value["arguments"], dict)
             and all(k.isprintable() and type(v) is int and 0 < v < 2**16 for k, v in value["arguments"].items()),
             "its architecture is not a name and whole numbers")  # fmt: skip
    return value


def _activations(value: Any, names: set[str]) -> dict[str, int]:
    sound = isinstance(value, dict) and all(type(v) is int and 1 <= v <= 8 for v in value.values())
    require(sound, "its activations are not names with 1 to 8 bits")
    for name in value:
        require(f"{name}.alpha" in names, f"activation {name!r} has no alpha among the tensors")
    return value


def _tied(value: Any, form: int, names: set[str]) -> dict[str, str]:
    """Other names of tensors: there are some if and only if the format says so."""
    there = isinstance(value, dict) and bool(value) == (form > UNTIED)
    require(there, f"its tied names are not those of format {form}")
    for other, first in value.items():
        sound = _is_name(other) and other not in names and isinstance(first, str) and first in names
        require(sound, f"{other!r} is tied to {first!r}: no other name of a tensor")
    return value
