"""The scheme explorer: the planes that each layer of a model keeps, and the integers they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from csq_mini import integers, report, verify_packed
from csq_mini.report import LayerReport

from .lab import Lab
from .picture import ORANGE, WIDTH, Canvas, Panel, called, nice_ticks


class SchemeExplorer(Lab):
    """The planes of every layer, and the integers of the layer you choose.

    Args:
        model_or_path: a converted model (as it is at present; "Read again" follows its training), a hardened one, or
            the path of a packed file, which needs no model.

    Raises:
        ValueError: for a model without a quantized layer. PackedFileError, OSError: for a file that cannot be read.
    """

    title = "scheme explorer"
    labels = {"layer": "Layer", "order": "Order", "read": "Read again"}
    orders = {
        "as listed": lambda layer: 0,
        "largest first": lambda layer: -layer.weights,
        "most planes first": lambda layer: -layer.paper_bits,
    }

    def __init__(self, model_or_path: nn.Module | str | Path):
        super().__init__()
        self.source = model_or_path
        self.read()
        self.values = {"layer": self.report.rows[0].name, "order": "as listed"}

    def controls(self, w: Any) -> dict[str, Any]:
        return {"layer": w.Dropdown(options=self.options("layer")), "order": w.Dropdown(options=self.options("order")),
                "read": w.Button()}  # fmt: skip

    def options(self, name: str) -> list[str]:
        """What can be chosen."""
        return list(self.orders) if name == "order" else [layer.name for layer in self.report.rows]

    def read(self) -> None:
        """Look at the model or file again: it may have changed."""
        if isinstance(self.source, nn.Module):
            self._codes = {name: found.codes.cpu() for name, found in integers(self.source).items()}
            self.report = report(self.source)
        else:
            packed = verify_packed(self.source)
            self._codes = {name: layer.codes() for name, layer in packed.layers.items()}
            self.report = packed.report()

    def codes(self) -> Tensor:
        """The integers of the chosen layer, in its weight's shape."""
        return self._codes[self.values["layer"]]

    def apply(self, name: str, value: Any) -> None:
        if value not in self.options(name):
            raise ValueError(f"{name} must be one of {', '.join(self.options(name))}, got {value!r}")
        self.values[name] = value

    @property
    def layer(self) -> LayerReport:
        """The chosen layer's line of the report."""
        return next(layer for layer in self.report.rows if layer.name == self.values["layer"])

    def picture(self) -> Canvas:
        """The planes of all layers, and how often each integer occurs in the chosen one."""
        canvas = Canvas()
        canvas.text(180, canvas.height + 14, "planes, most significant left")
        canvas.text(WIDTH - 20, canvas.height + 14, "weights", "end")
        canvas.height += 24
        for layer in sorted(self.report.rows, key=self.orders[self.values["order"]]):
            y = canvas.height
            if layer.name == self.values["layer"]:
                canvas.rect(4, y, WIDTH - 8, 22, "#dcebf5")
            canvas.layer(y, 180, 20, layer.name, layer.planes)
            canvas.text(190 + 24 * len(layer.planes), y + 16, str(layer.paper_bits))
            canvas.text(WIDTH - 20, y + 16, f"{layer.weights} ({layer.share:.0%})", "end")
            canvas.height += 24
        self._draw_codes(canvas)
        return canvas

    def _draw_codes(self, canvas: Canvas) -> None:
        values, counts = self.codes().flatten().unique(return_counts=True)
        reach = max(int(values.abs().max()), 1) if len(values) else 1
        ticks = nice_ticks(float(counts.max()) if len(counts) else 1, 3)
        title = f"layer {called(self.layer.name)}: how many weights have each integer"
        edge = 1.04 * reach + 0.5
        panel = Panel(canvas, 120, title, "integer, in steps", [-reach, 0, reach], ticks, (-edge, edge))
        width = max(min(18.0, 0.4 * (panel.right - panel.left) / edge), 1.0)
        for value, count in zip(values.tolist(), counts.tolist()):
            canvas.rect(panel.x(value) - width / 2, panel.y(count), width, panel.bottom - panel.y(count), ORANGE)

    def words(self) -> str:
        layer, values = self.layer, len(self.codes().unique())
        filled = f" ({layer.filled} filled at the freeze)" if layer.filled else ""
        return (
            f"Layer {called(layer.name)}, {'x'.join(map(str, layer.shape))}: {layer.paper_bits} of "
            f"{len(layer.planes)} planes kept{filled}; different integers: {values}; stored bits a weight: "
            f"{layer.stored_bits}; bytes: {layer.bytes}. "
            f"The whole model: {self.report.total.paper_bits:.2f} bits a weight."
        )
