"""Draws the picture of the cover and the README: ``python book/scripts/cover.py [file]``.

Trains the digits network to 2 bits, seed 0, on one CPU thread (a quarter of a minute), and writes
book/_static/cover.svg: the scheme, which planes each layer keeps. The same machine writes the same bytes.
"""

import argparse
import os
from pathlib import Path

import torch

import csq_mini as csq

FILE = Path(__file__).resolve().parents[1] / "_static" / "cover.svg"


def draw():
    """The cover's picture, as the text of an SVG file."""
    torch.set_num_threads(1)
    recipe = csq.recipes.get("digits", target=2.0, seed=0)
    torch.manual_seed(recipe.seed)
    result = csq.fit(csq.models.digits_cnn(), csq.data.digits(), recipe, device="cpu", progress=False)
    return csq.plots.scheme(result.report).svg()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=FILE)
    file = parser.parse_args(argv).file
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(draw(), "utf8")
    os.replace(temporary, file)  # whole or not at all
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
