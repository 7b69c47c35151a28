"""The report on a scheme: a line for each layer, and the totals.

*Paper bits* count the planes a layer keeps, as papers do (CSQ, arXiv 2212.02770). *Stored bits* are what its integers
need in a file, sign included. *Bytes* are the stored bits of all its weights, rounded up.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .check import shown
from .modules import named_modules, owner_of, state_once
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


def paper_bits(planes: str) -> int:
    """How many planes a layer keeps, from the word for them in a report or a row, such as "11F....."."""
    return len(planes) - planes.count(".")


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
class FloatPart:
    """A parameter or buffer that stays as it is."""

    name: str
    kind: str  # class of the layer that has it; empty if unknown
    shape: tuple[int, ...]
    bytes: int

    @property
    def values(self) -> int:
        return math.prod(self.shape)


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
    """A table of the quantized layers, to print or to show.

    ``rows`` has a :class:`LayerReport` for each, ``floats`` a :class:`FloatPart` for all else that the model holds, and
    ``total`` the sums. ``cut`` is what the freeze took away, in bits a weight, if :func:`csq_mini.fit` made the report.
    """

    def __init__(self, rows: list[LayerReport], total: Total, floats: Sequence[FloatPart] = ()):
        self.rows, self.total, self.floats, self.cut = rows, total, list(floats), 0.0

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a DataFrame, a column for each field of :class:`LayerReport`."""
        import pandas

        return pandas.DataFrame([vars(row) for row in self.rows])

    def summary(self) -> list[str]:
        """The totals as lines of text, the whole model first."""
        t = self.total
        values, now = t.weights + t.float_values, t.bytes + t.float_bytes
        return [
            f"whole model: {values} values, {t.weights / max(values, 1):.1%} of them quantized; "
            f"{t.original_bytes} bytes become {now}, {t.compression:.1f}x smaller",
            f"quantized: {t.weights} weights in {t.layers} layers, {t.bytes} bytes; {t.paper_bits:.3f} paper bits "
            f"(32 over them: {t.paper_compression:.1f}x), {t.stored_bits:.3f} stored bits a weight",
            f"stays float: {t.float_values} values, {t.float_bytes} bytes; {self._float_weights()}",
            "planes: most significant first; 1 learned, F filled at the freeze, . dropped",
            *([f"the freeze cut {self.cut:.3f} bits a weight that the search had left"] if self.cut else []),
        ]

    def _float_weights(self) -> str:
        """The largest of what has two dimensions and more: weights that nobody quantized."""
        found = sorted((part for part in self.floats if len(part.shape) > 1), key=lambda part: -part.values)
        listed = [f"{shown(x.name)} {'x'.join(map(str, x.shape))}{x.kind and f' of {x.kind}'}" for x in found[:4]]
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        return f"weights among it: {', '.join(listed) or 'none'}{more}"

    def __str__(self) -> str:
        head: tuple[str, ...] = ("layer", "kind", "shape", "weights", "share", "planes", "paper", "stored", "bytes")
        body: list[tuple[str, ...]] = [
            (shown(r.name) or "(model)", r.kind, "x".join(map(str, r.shape)), str(r.weights), f"{r.share:.1%}",
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
        folded = [line for text in self.summary() for line in textwrap.wrap(text, 110, subsequent_indent="  ")]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], "", *folded])

    def _repr_html_(self) -> str:
        table = self.to_pandas().drop(columns="filled").rename(columns={"name": "layer"})
        table["layer"] = [html.escape(shown(name)) for name in table["layer"]]
        table["shape"] = ["x".join(map(str, shape)) for shape in table["shape"]]
        table["planes"] = [f"<code>{planes}</code>" for planes in table["planes"]]
        titled = table.rename(columns=lambda c: c.replace("_", " "))
        look: Any = {"index": False, "border": 0, "justify": "left", "formatters": {"share": "{:.1%}".format}}
        text = titled.to_html(escape=False, **look)  # escaped above
        return text + "<p>" + "<br>".join(map(html.escape, self.summary())) + "</p>"


def report(model: nn.Module) -> Report:
    """What each layer of a hardened model keeps, or of a converted one with all gates hard."""
    found = schemes(model)
    kinds = {k: getattr(m, "float_class", type(m)).__name__ for k, m in named_modules(model)}
    layers = [(k, kinds[k], tuple(s.codes.shape), s.planes, stored_bits(s.codes)) for k, (_, s) in found.items()]
    ours = {f"{name}.weight".lstrip(".") for name in found}
    prefixes = tuple(f"{name}.csq.".lstrip(".") for name in found)
    floats = [
        FloatPart(key, kinds.get(owner_of(key), ""), tuple(t.shape), t.nbytes)
        for key, t in state_once(model)[0].items() if key not in ours and not key.startswith(prefixes)
    ]  # fmt: skip
    return tabulate(layers, floats)


def tabulate(
    layers: Sequence[tuple[str, str, tuple[int, ...], str, int]], floats: Sequence[FloatPart] = ()
) -> Report:  # fmt: skip
    """The report on layers given as (name, kind, shape, planes, stored bits), and on what stays float."""
    float_bytes = sum(part.bytes for part in floats)
    weights = sum(math.prod(shape) for _, _, shape, _, _ in layers)
    rows = [
        LayerReport(
            name=name, kind=kind, shape=shape, weights=math.prod(shape), planes=planes,
            paper_bits=paper_bits(planes), filled=planes.count("F"), stored_bits=bits,
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
        float_values=sum(part.values for part in floats),
        float_bytes=float_bytes,
        original_bytes=torch.float32.itemsize * weights + float_bytes,
    )
    return Report(rows, total, floats)
