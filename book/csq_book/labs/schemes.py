"""The scheme explorer: the planes that each layer of a model keeps, and the integers they make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from csq_mini.conversion import integers
from csq_mini.packed.format import verify_packed
from csq_mini.report import LayerReport, report
from .control import Control
from .lab import Lab
from .picture import ORANGE, WIDTH, Canvas, Panel, nice_ticks, plane_color, short


class SchemeExplorer(Lab):
    """What :func:`scheme_explorer` returns."""

    title = "scheme explorer"
    orders = ("as listed", "largest first", "most planes first")

    def __init__(self, model_or_path: nn.Module | str | Path):
        super().__init__()
        self.source = model_or_path
        self.read()
        names = tuple(row.name for row in self.report.rows)
        self.controls = (
            Control("layer", "choice", "Layer", options=names),
            Control("order", "choice", "Order", options=self.orders),
            Control("read", "button", "Read again"),
        )
        self.values = {"layer": names[0], "order": self.orders[0]}

    def read(self) -> None:
        """Look at the model or file anew: it may have been trained on, or written again."""
        if isinstance(self.source, nn.Module):
            self.report = report(self.source)
            self._packed = None
        else:
            self._packed = verify_packed(self.source)
            self.report = self._packed.report()
        self._codes: dict[str, Tensor] = {}

    def codes(self) -> Tensor:
        """The integers of the chosen layer, in its weight's shape."""
        name = self.values["layer"]
        if name not in self._codes:
            if isinstance(self.source, nn.Module):
                self._codes |= {key: found.codes.cpu() for key, found in integers(self.source).items()}
            elif self._packed is not None:
                self._codes[name] = self._packed.layers[name].codes()
        return self._codes[name]

    def apply(self, name: str, value: Any) -> None:
        """Choose a layer or an order."""
        options = next(control.options for control in self.controls if control.name == name)
        if value not in options:
            raise ValueError(f"{name} must be one of {', '.join(options)}, got {value!r}")
        self.values[name] = value

    @property
    def row(self) -> LayerReport:
        """The chosen layer's line of the report."""
        return next(row for row in self.report.rows if row.name == self.values["layer"])

    def picture(self) -> Canvas:
        """The planes of all layers, and how often each integer occurs in the chosen one."""
        canvas = Canvas()
        self._draw_layers(canvas)
        values, counts = self.codes().flatten().unique(return_counts=True)
        reach = max(int(values.abs().max()), 1) if len(values) else 1
        ticks = nice_ticks(float(counts.max()) if len(counts) else 1, 3)
        title = f"layer {self._called(self.row)}: how many weights have each integer"
        xticks = [-reach, *([-reach // 2, 0, reach // 2] if reach % 2 == 0 else [0]), reach]
        edge = 1.04 * reach + 0.5
        panel = Panel(canvas, 120, title, "integer, in steps", xticks, ticks, (-edge, edge))
        width = max(min(18.0, 0.4 * (panel.right - panel.left) / edge), 1.0)
        for value, count in zip(values.tolist(), counts.tolist()):
            canvas.rect(panel.x(value) - width / 2, panel.y(count), width, panel.bottom - panel.y(count), ORANGE)
        return canvas

    def _draw_layers(self, canvas: Canvas) -> None:
        keys: dict[str, Callable[[LayerReport], float]] = {
            self.orders[1]: lambda row: -row.weights, self.orders[2]: lambda row: -row.paper_bits,
        }  # fmt: skip
        rows = sorted(self.report.rows, key=keys.get(self.values["order"], lambda row: 0))
        canvas.text(180, canvas.height + 14, "planes, most significant left")
        canvas.text(WIDTH - 20, canvas.height + 14, "weights", "end")
        canvas.height += 24
        for row in rows:
            y, chosen = canvas.height, row.name == self.values["layer"]
            if chosen:
                canvas.rect(4, y, WIDTH - 8, 22, "#dcebf5")
            canvas.text(8, y + 16, ("\u25b8 " if chosen else "") + short(self._called(row)))
            for i, mark in enumerate(row.planes):
                _draw_plane(canvas, 180 + 24 * i, y + 2, mark)
            canvas.text(190 + 24 * len(row.planes), y + 16, f"{row.paper_bits}")
            canvas.text(WIDTH - 20, y + 16, f"{row.weights} ({row.share:.0%})", "end")
            canvas.height += 24

    @staticmethod
    def _called(row: LayerReport) -> str:
        return row.name or "(model)"

    def words(self) -> str:
        """The chosen layer in numbers, and the whole."""
        row, total = self.row, self.report.total
        different = len(self.codes().unique())
        filled = f", {row.filled} of them filled at the freeze" if row.filled else ""
        return (
            f"Layer {self._called(row)}: shape {'x'.join(map(str, row.shape))}, {_count(row.paper_bits, 'plane')} "
            f"kept{filled}, {_count(different, 'different integer')}, stored with {_count(row.stored_bits, 'bit')} "
            f"each in {_count(row.bytes, 'byte')}. The whole: {total.paper_bits:.2f} bits a weight."
        )


def scheme_explorer(model_or_path: nn.Module | str | Path) -> SchemeExplorer:
    """Every layer's planes, and the integers of the one you choose.

    Args:
        model_or_path: a converted model (its present hard scheme; "Read again" follows its training), a hardened
            one, or the path of a packed file, for which no model is needed.

    Raises:
        ValueError: for a model with no quantized layer. PackedFileError, OSError: for a file that cannot be read.
    """
    return SchemeExplorer(model_or_path)


def _draw_plane(canvas: Canvas, x: float, y: float, mark: str) -> None:
    canvas.rect(x, y, 20, 18, plane_color(mark))
    if mark == "F":
        canvas.text(x + 10, y + 14, "F", "middle", "black")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)
