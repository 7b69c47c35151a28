"""The report on a scheme: a line for each layer, and the totals.

*Paper bits* count the planes a layer keeps, as papers do (CSQ, arXiv 2212.02770). *Stored bits* are what its integers
need in a file, sign included. *Bytes* are the stored bits of all its weights, rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .modules import unwrap
from .scheme import schemes

if TYPE_CHECKING:
    import pandas


def stored_bits(codes: Tensor) -> int:
    """Bits that a file needs for each of these integers, of any shape.

    They hold the code less the smallest or, where that takes fewer, an index into a table of the distinct values.
    """
    if codes.numel() == 0:
        return 0
    span = int(codes.max()) - int(codes.min()) + 1
    return min((span - 1).bit_length(), (len(codes.unique()) - 1).bit_length())


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer of a report."""

    name: str
    kind: str  # class of the layer; empty if unknown
    shape: tuple[int, ...]
    weights: int
    planes: str  # most significant first: 1 learned, F filled, . dropped
    paper_bits: int
    filled: int  # of these planes, those that the freeze filled
    stored_bits: int
    bytes: int  # the packed integers
    share: float  # of all quantized weights


@dataclass(frozen=True)
class Total:
    """Sums of a report. Averages are weighted by layer size."""

    layers: int
    weights: int
    paper_bits: float
    stored_bits: float
    bytes: int  # packed integers of all layers and a float32 step each
    float_values: int  # parameters and buffers that stay float
    float_bytes: int
    original_bytes: int  # the model as a float32 state_dict

    @property
    def paper_compression(self) -> float:
        """32 / paper bits, as papers state it, without signs and float parts."""
        return 32 / self.paper_bits if self.paper_bits else math.inf

    @property
    def compression(self) -> float:
        """float32 state_dict over packed integers plus all that stays float."""
        return self.original_bytes / max(self.bytes + self.float_bytes, 1)


class Report:
    """A table of the quantized layers, to print or to show: ``rows`` of :class:`LayerReport`, and a :class:`Total`."""

    def __init__(self, rows: list[LayerReport], total: Total):
        self.rows, self.total = rows, total

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a DataFrame, a column for each field of :class:`LayerReport`."""
        import pandas

        return pandas.DataFrame([vars(row) for row in self.rows])

    def summary(self) -> list[str]:
        """The totals as lines of text."""
        t = self.total
        return [
            f"{t.weights} weights in {t.layers} layers: {t.paper_bits:.3f} paper bits, "
            f"{t.stored_bits:.3f} stored bits a weight",
            f"{t.bytes} bytes packed, {t.float_bytes} bytes stay float ({t.float_values} values)",
            f"compression {t.paper_compression:.1f}x by paper bits (32 / bits), {t.compression:.1f}x by bytes",
            "planes: most significant first; 1 learned, F filled at the freeze, . dropped",
        ]

    def __str__(self) -> str:
        head: tuple[str, ...] = ("layer", "kind", "shape", "weights", "share", "planes", "paper", "stored", "bytes")
        body: list[tuple[str, ...]] = [
            (r.name or "(model)", r.kind, "x".join(map(str, r.shape)), str(r.weights), f"{r.share:.1%}",
             r.planes, str(r.paper_bits), str(r.stored_bits), str(r.bytes))
            for r in self.rows
        ]  # fmt: skip
        if not any(r.kind for r in self.rows):  # from a packed file
            head, *body = (row[:1] + row[2:] for row in (head, *body))
        widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
        left = {i for i, title in enumerate(head) if title in ("layer", "kind", "shape", "planes")}
        lines = [
            "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip()
            for row in (head, *body)
        ]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], "", *self.summary()])

    def _repr_html_(self) -> str:
        table = self.to_pandas().drop(columns="filled").rename(columns={"name": "layer"})
        table["shape"] = ["x".join(map(str, shape)) for shape in table["shape"]]
        table["planes"] = [f"<code>{planes}</code>" for planes in table["planes"]]
        shown = table.rename(columns=lambda c: c.replace("_", " "))
        html = shown.to_html(index=False, border=0, escape=False, justify="left", formatters={"share": "{:.1%}".format})
        return html + "<p>" + "<br>".join(self.summary()) + "</p>"


def report(model: nn.Module) -> Report:
    """What each layer of a hardened model keeps, or of a converted one with all gates hard."""
    found = schemes(model)
    kinds = {name: getattr(layer, "float_class", type(layer)).__name__ for name, (layer, _) in found.items()}
    layers = [(k, kinds[k], tuple(s.codes.shape), s.planes, stored_bits(s.codes)) for k, (_, s) in found.items()]
    ours = {f"{name}.weight".lstrip(".") for name in found}
    prefixes = tuple(f"{name}.csq.".lstrip(".") for name in found)
    state = unwrap(model).state_dict()
    rest = [t for key, t in state.items() if key not in ours and not key.startswith(prefixes)]
    return tabulate(layers, sum(t.numel() for t in rest), sum(t.numel() * t.element_size() for t in rest))


def tabulate(
    layers: Sequence[tuple[str, str, tuple[int, ...], str, int]], float_values: int, float_bytes: int
) -> Report:
    """The report on layers given as (name, kind, shape, planes, stored bits), and on what stays float."""
    weights = sum(math.prod(shape) for _, _, shape, _, _ in layers)
    rows = [
        LayerReport(
            name=name, kind=kind, shape=shape, weights=math.prod(shape), planes=planes,
            paper_bits=len(planes) - planes.count("."), filled=planes.count("F"), stored_bits=bits,
            bytes=math.ceil(math.prod(shape) * bits / 8), share=math.prod(shape) / max(weights, 1),
        )
        for name, kind, shape, planes, bits in layers
    ]  # fmt: skip
    total = Total(
        layers=len(rows),
        weights=weights,
        paper_bits=sum(r.weights * r.paper_bits for r in rows) / max(weights, 1),
        stored_bits=sum(r.weights * r.stored_bits for r in rows) / max(weights, 1),
        bytes=sum(r.bytes for r in rows) + torch.float32.itemsize * len(rows),
        float_values=float_values,
        float_bytes=float_bytes,
        original_bytes=torch.float32.itemsize * weights + float_bytes,
    )
    return Report(rows, total)
