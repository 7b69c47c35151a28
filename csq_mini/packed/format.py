"""The packed file format: a safetensors file with one metadata entry, each quantized layer a string of bits in it.

Each group of bits is the index of an integer code. The book's page on the format explains every byte.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..report import FloatPart, Report, tabulate
from ..scheme import Scheme

FORMAT = 2  # version; a reader refuses a newer one
UNTIED = 1  # version of a file without tied names, which older readers read too
KEY = "csq_mini"  # the only metadata entry: with two, safetensors writes them in random order
NO_DIGEST = "0" * 64  # in place of the digest while it is computed
CHUNK = 2**20  # weights decoded at a time, so that memory stays bounded
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")


class PackedFileError(ValueError):
    """The file is not a packed model, is damaged, or does not fit the model it is loaded into."""


@dataclass(frozen=True)
class PackedLayer:
    """One quantized layer of a packed file, its codes still packed."""

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
        return math.prod(self.shape)

    @property
    def kept(self) -> tuple[int, ...]:
        """Planes that are not dropped, least significant first."""
        return self._marked("1F")

    @property
    def limit(self) -> int:
        """The largest code that its planes can hold, in units of the lowest kept."""
        return sum(2**b for b in self.kept) >> min(self.kept, default=0)

    def _marked(self, marks: str) -> tuple[int, ...]:
        return tuple(b for b, mark in enumerate(self.planes[::-1]) if mark in marks)

    def scheme(self) -> Scheme:
        """Planes, step and integers, as a hardened layer keeps them."""
        return Scheme(len(self.planes), self.kept, self._marked("F"), self.step, self.codes())

    def weight(self) -> Tensor:
        """The hardened layer's weight, equal in every bit."""
        return self.scheme().weight(DTYPES[self.dtype])

    def codes(self) -> Tensor:
        """The integers, int16, in the weight's shape."""
        table = np.array(self.values, np.int16)
        parts = [table[indices] for indices in self.indices()]
        return torch.from_numpy(np.concatenate([*parts, np.zeros(0, np.int16)])).view(self.shape)

    def indices(self) -> Iterator[np.ndarray]:
        """The index of each code among the values, at most CHUNK at a time."""
        for start in range(0, self.weights, CHUNK):  # CHUNK is a multiple of 8: each begins at a whole byte
            count = min(CHUNK, self.weights - start)
            part = self.payload[start * self.bits // 8 : math.ceil((start + count) * self.bits / 8)]
            yield unpack_bits(part, count, self.bits)


@dataclass(frozen=True)
class Packed:
    """A verified packed file; ``layers`` decode themselves on demand."""

    layers: dict[str, PackedLayer]
    floats: dict[str, tuple[str, tuple[int, ...], memoryview]]  # name -> dtype, shape, bytes
    architecture: dict[str, Any] | None
    activations: dict[str, int]
    recipe: str | None
    library: str
    sha256: str
    file_bytes: int
    header_bytes: int
    tied: dict[str, str]  # other name of a tensor -> the name it is stored under

    def report(self) -> Report:
        """The table that :func:`csq_mini.report` makes of a model."""
        layers = [(x.name, "", x.shape, x.planes, x.bits) for x in self.layers.values()]
        return tabulate(layers, [FloatPart(k, "", shape, len(data)) for k, (_, shape, data) in self.floats.items()])

    def __str__(self) -> str:
        report, payload = self.report(), sum(len(layer.payload) for layer in self.layers.values())
        total, rest = report.total, report.total.float_bytes
        kinds = Counter(name.rpartition(".")[2] for name in self.floats)  # such as 21 of running_mean
        built = self.architecture and f"{self.architecture['name']}, {self.architecture['arguments']}"
        return "\n".join([
            str(report),
            "",
            f"file: {self.file_bytes} bytes = {payload} of codes + {rest} float + {self.header_bytes} of header",
            f"compression on disk: {total.original_bytes / self.file_bytes:.2f}x (float32 state over this file)",
            f"architecture: {built or 'not known to the library'}"
            + (f"; activations of {len(self.activations)} layers quantized" if self.activations else ""),
            f"stays float: {', '.join(f'{n} of {kind}' for kind, n in kinds.items()) or 'nothing'}"
            + (f"; {len(self.tied)} more names of the same tensors" if self.tied else ""),
            f"written by csq-mini {self.library}, format {FORMAT if self.tied else UNTIED}, "
            f"recipe {self.recipe or 'not given'}",
            f"sha-256 {self.sha256}",
        ])  # fmt: skip


def weight_key(name: str) -> str:
    """Key of a layer's weight in the state_dict; the layer that is the whole model has no name."""
    return f"{name}.weight" if name else "weight"


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
