"""The packed file format, read: every check that a file has to pass, and what it holds then.

A packed file is a safetensors file with one metadata entry. Its quantized layers are dense strings of
bits, each group of them the index of an integer code; the book's page on the format says every byte.
Nothing is believed that a file says. :func:`verify_packed` checks structure, ranges and digest, and
decodes a piece at a time, so that memory stays bounded by the size of the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..conversion import Scheme
from ..report import LayerReport, Report, Total

FORMAT = 1
"""Version of the format; a reader refuses a newer one."""
KEY = "csq_mini"  # the only metadata entry: with two, safetensors writes them in random order
NO_DIGEST = "0" * 64  # stands where the digest will, while it is computed
MAX_HEADER = 2**24
CHUNK = 2**20  # weights decoded at a time, so that memory stays bounded
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")


class PackedFileError(ValueError):
    """A file that is no packed model, is damaged, or does not fit the model it is loaded into."""


@dataclass(frozen=True)
class PackedLayer:
    """What a packed file says of one quantized layer; its codes are still packed."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # of the weight, as safetensors calls it
    planes: str  # most significant first: 1 learned, F filled, . dropped
    step: float
    bits: int  # for each code
    values: tuple[int, ...] | range  # index -> code
    payload: memoryview

    @property
    def weights(self) -> int:
        """How many weights the layer has."""
        return math.prod(self.shape)

    @property
    def scheme(self) -> Scheme:
        """Planes and step, as a hardened layer keeps them."""
        marks = self.planes[::-1]
        kept = tuple(b for b, mark in enumerate(marks) if mark != ".")
        return Scheme(len(marks), kept, tuple(b for b in kept if marks[b] == "F"), self.step)

    def codes(self) -> Tensor:
        """The integers, int16, in the weight's shape."""
        return torch.from_numpy(np.concatenate([*self._chunks(), np.zeros(0, np.int16)])).view(self.shape)

    def weight(self) -> Tensor:
        """step * code, multiplied in float32 at least and rounded once, as the hardened layer had it."""
        dtype = DTYPES[self.dtype]
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return (self.codes().to(wide) * self.step).to(dtype)

    def _chunks(self) -> Iterator[np.ndarray]:
        table = np.array(self.values, np.int16)
        for start in range(0, self.weights, CHUNK):  # CHUNK is a multiple of 8: each begins at a whole byte
            count = min(CHUNK, self.weights - start)
            part = self.payload[start * self.bits // 8 : math.ceil((start + count) * self.bits / 8)]
            yield table[unpack_bits(part, count, self.bits)]


@dataclass(frozen=True)
class Packed:
    """A packed file that has been verified; ``layers`` decode themselves on demand."""

    layers: dict[str, PackedLayer]
    floats: dict[str, tuple[str, tuple[int, ...], memoryview]]  # name -> dtype, shape, bytes
    architecture: dict[str, Any] | None
    activations: dict[str, int]
    recipe: str | None
    library: str
    sha256: str
    file_bytes: int
    header_bytes: int

    def report(self) -> Report:
        """The file's layers as the table that :func:`csq_mini.report` makes of a model."""
        weights = sum(layer.weights for layer in self.layers.values())
        rows = [
            LayerReport(x.name, "", x.shape, x.weights, x.planes, len(x.scheme.kept), len(x.scheme.filled), x.bits,
                        len(x.payload), x.weights / max(weights, 1))
            for x in self.layers.values()
        ]  # fmt: skip
        rest = sum(len(data) for _, _, data in self.floats.values())
        total = Total(
            len(rows), weights, sum(r.weights * r.paper_bits for r in rows) / max(weights, 1),
            sum(r.weights * r.stored_bits for r in rows) / max(weights, 1), sum(r.bytes for r in rows) + 4 * len(rows),
            sum(math.prod(shape) for _, shape, _ in self.floats.values()), rest, 4 * weights + rest,
        )  # fmt: skip
        return Report(rows, total)

    def __str__(self) -> str:
        total, rest = self.report().total, sum(len(data) for _, _, data in self.floats.values())
        payload = sum(len(layer.payload) for layer in self.layers.values())
        built = self.architecture and f"{self.architecture['name']}, {self.architecture['arguments']}"
        return "\n".join([
            str(self.report()),
            "",
            f"file: {self.file_bytes} bytes = {payload} of codes + {rest} float + {self.header_bytes} of header",
            f"compression on disk: {total.original_bytes / self.file_bytes:.2f}x (float32 state over this file)",
            f"architecture: {built or 'not known to the library'}"
            + (f"; activations of {len(self.activations)} layers quantized" if self.activations else ""),
            f"stays float: {_kinds(self.floats) or 'nothing'}",
            f"written by csq-mini {self.library}, format {FORMAT}, recipe {self.recipe or 'not given'}",
            f"sha-256 {self.sha256}",
        ])  # fmt: skip


def verify_packed(path: str | Path) -> Packed:
    """Check a packed file without a model: structure, ranges, digest, and every code.

    Returns:
        What the file holds.

    Raises:
        PackedFileError: saying what is wrong. FileNotFoundError, OSError: if it cannot be read.
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
    if not holds:
        raise PackedFileError(problem)


def _object(text: bytes, what: str) -> dict[str, Any]:
    """A JSON object without duplicate names or numbers that are none."""

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
    """Every tensor of the file; together they cover the payload without gap or overlap."""
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


FIELDS = {"bits", "dtype", "planes", "shape", "step"}


def _layer(name: str, entry: Any, tensors: dict[str, Any]) -> PackedLayer:
    """A layer's entry, checked, with its payload taken out of the tensors."""
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
    """Every index has a value, every code fits the planes, and the bits that fill the last byte are 0."""
    kept = layer.scheme.kept
    limit = sum(2**b for b in kept) >> min(kept, default=0)
    used = np.zeros(2**layer.bits, bool)
    if layer.bits == 0:
        used[0] = layer.weights > 0  # one value for all: nothing to decode, whatever the shape says
    else:
        for start in range(0, layer.weights, CHUNK):
            count = min(CHUNK, layer.weights - start)
            part = layer.payload[start * layer.bits // 8 : math.ceil((start + count) * layer.bits / 8)]
            used[unpack_bits(part, count, layer.bits)] = True
    there = np.flatnonzero(used)
    require(there.size == 0 or there[-1] < len(layer.values), f"layer {layer.name!r} uses a value not in its table")
    sound = all(abs(layer.values[i]) <= limit for i in there)
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


def _kinds(names: Iterable[str]) -> str:
    """Names counted by what they end in: '21 of running_mean, 1 of bias'."""
    return ", ".join(f"{n} of {kind}" for kind, n in Counter(name.rpartition(".")[2] for name in names).items())


def weight_key(name: str) -> str:
    return f"{name}.weight".lstrip(".")


def pack_bits(indices: np.ndarray, bits: int) -> np.ndarray:
    """Indices (uint16) as a dense string of bits: bit j of index i is bit i * bits + j, low bits of a byte first."""
    parts = [np.zeros(0, np.uint8)]
    for start in range(0, len(indices) if bits else 0, CHUNK):
        two_bytes = indices[start : start + CHUNK, None].astype("<u2").view(np.uint8)
        parts.append(np.packbits(np.unpackbits(two_bytes, axis=1, count=bits, bitorder="little"), bitorder="little"))
    return np.concatenate(parts)


def unpack_bits(payload: Any, count: int, bits: int) -> np.ndarray:
    """The inverse: ``count`` indices, uint8 up to 8 bits, else uint16."""
    if not bits:
        return np.zeros(count, np.uint8)
    flat = np.unpackbits(np.frombuffer(payload, np.uint8), count=count * bits, bitorder="little")
    as_bytes = np.packbits(flat.reshape(count, bits), axis=1, bitorder="little")
    return as_bytes.view("<u2").ravel() if bits > 8 else as_bytes.ravel()
