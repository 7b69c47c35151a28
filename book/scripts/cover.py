"""Draws the picture of the cover and the README: ``python book/scripts/cover.py [file]``.

Trains the digits network to 2 bits, seed 0, on one CPU thread (a quarter of a minute), and writes
book/_static/cover.svg: which planes each layer keeps. The same machine writes the same bytes.
"""

import sys
from pathlib import Path

import torch

import csq_mini as csq
from csq_mini.files import write_whole

FILE = Path(__file__).resolve().parents[1] / "_static" / "cover.svg"


def draw():
    """The picture, as the text of an SVG file."""
    torch.set_num_threads(1)
    recipe = csq.recipes.get("digits", target=2.0, seed=0)
    torch.manual_seed(recipe.seed)
    result = csq.fit(csq.models.digits_cnn(), csq.data.digits(), recipe, device="cpu", progress=False)
    return csq.plots.scheme(result.report).svg()


if __name__ == "__main__":
    file = Path(sys.argv[1]) if sys.argv[1:] else FILE
    write_whole(file, lambda opened: opened.write(draw().encode()))
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")
