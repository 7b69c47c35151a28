"""Two kinds of drawings for puzzles: tensors as squares with numbers, and curves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from csq_mini import plots

Draw = Callable[[tuple[Any, ...], Any, Any], Any]
"""Makes a drawing of (arguments, wanted, found); ``found`` is None while there is no answer."""


def squares(*names: str) -> Draw:
    """Draws the arguments (``names`` label them), what is wanted and what was found as squares with numbers."""

    def draw(arguments: tuple[Any, ...], want: Any, found: Any) -> Any:
        wants = want if isinstance(want, (tuple, list)) else (want,)
        finds = found if isinstance(found, (tuple, list)) else (found,) * len(wants)
        blocks = [(name, value, 2) for name, value in zip(names, arguments)]
        blocks += [("wanted", value, 0) for value in wants]
        blocks += [("yours", value, 1) for value in finds if value is not None]
        tables = [(name, _table(value), color) for name, value, color in blocks]
        return _picture(tables)

    return draw


def _table(value: Any) -> list[list[float]]:
    """A tensor, or a number, as rows of numbers."""
    tensor = torch.as_tensor(value).detach().double()
    return tensor.reshape(-1, tensor.shape[-1] if tensor.ndim else 1).tolist()


def _picture(tables: list[tuple[str, list[list[float]], int]]) -> Any:
    rows = sum(len(table) for _, table, _ in tables)
    with plots.style() as colors:
        figure = plots.Picture(0.42 * (rows + 0.6 * len(tables)))
        ax, y, ticks = figure.subplots(), 0.0, []
        for name, table, color in tables:
            ticks.append((y + (len(table) - 1) / 2, name))
            peak = max((abs(v) for row in table for v in row), default=0) or 1
            for row in table:
                for x, v in enumerate(row):
                    shade = 0.12 + 0.6 * abs(v) / peak
                    ax.bar(x, 0.9, 0.94, bottom=y - 0.45, color=(*colors[color], shade), lw=0)
                    ax.text(x, y, f"{v:.3g}".replace("-", "\N{MINUS SIGN}"), ha="center", va="center", fontsize=10)
                y += 1
            y += 0.6
        columns = max(len(row) for _, table, _ in tables for row in table)
        ax.set(yticks=[t for t, _ in ticks], yticklabels=[n for _, n in ticks], xticks=[])
        ax.set(xlim=(-0.6, columns - 0.4), ylim=(y - 1.0, -0.6))
        ax.grid(False)
        ax.tick_params(left=False)
        for side in ax.spines.values():
            side.set_visible(False)
    return figure


def curves(x: str, y: str) -> Draw:
    """Draws what is wanted and what was found over the first argument, ``[n]``; ``x`` and ``y`` label the axes."""

    def draw(arguments: tuple[Any, ...], want: Any, found: Any) -> Any:
        with plots.style() as colors:
            figure = plots.Picture(2.4)
            ax = figure.subplots()
            ax.plot(arguments[0], torch.as_tensor(want).detach(), color=colors[0], lw=5, alpha=0.4, label="wanted")
            if found is not None:
                ax.plot(arguments[0], torch.as_tensor(found).detach(), color=colors[1], lw=1.6, label="yours")
            ax.set(xlabel=x, ylabel=y)
            ax.legend()
        return figure

    return draw
