"""Trained networks as packed files: made from what a run left, and loaded by name in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import models
from ..activations import activation_bits, quantize_activations
from ..check import unknown
from ..files import write_whole
from ..packed.format import weight_key
from ..packed.save import load_packed
from ..recipes import Recipe
from ..scheme import Integers, Scheme
from .reproduce import read_state
from .rows import Row, read_row

WEIGHTS = Path(__file__).parent / "weights"
"""Packed files that come with the library, each with the row of results (.json) of the run it came from."""


def names() -> list[str]:
    """Names that :func:`load` takes."""
    return sorted(file.stem for file in WEIGHTS.glob("*.safetensors"))


def load(name: str) -> nn.Module:
    """A trained network, exactly quantized, in evaluation mode; its row of results is its ``csq_row``.

    Args:
        name: such as "resnet20-cifar10-2bit": network, data, paper bits a weight asked for.

    Raises:
        ValueError: for an unknown name, with near ones.
    """
    if name not in names():
        raise ValueError(unknown("trained network", name, names()))
    model = load_packed(WEIGHTS / f"{name}.safetensors")
    model.csq_row = row(name)  # type: ignore[assignment]
    return model


def row(name: str) -> Row:
    """The row of results of a trained network: its accuracy, size, recipe, hardware and versions."""
    return read_row(WEIGHTS / f"{name}.json")


def pack_run(run: str | Path, path: str | Path) -> int:
    """Pack what a finished run left: a run folder of :func:`csq_mini.fit`, or a kept row of results (.json).

    Returns:
        Bytes written.

    Raises:
        ValueError: if there is no finished, quantized run, or its weights are not those of its scheme.
        FileNotFoundError: if there is no such run.
    """
    run = Path(run)
    if run.suffix == ".json":
        row, state = read_row(run), read_state(run.with_suffix(".pt.xz"))
        marks, recipe = row.scheme, Recipe(**row.recipe)
        model = models.get(row.model)(num_classes=len(state["fc.bias"]))  # every network of ours ends in fc
        if recipe.activation_bits is not None:
            quantize_activations(model, recipe.activation_bits)
        architecture: Any = model.csq_architecture
        activations = activation_bits(model)
    else:
        result, state = _result(run), read_state(run / "model.pt")
        recipe = Recipe(**json.loads((run / "run.json").read_text("utf8"))["recipe"])
        marks, architecture, activations = result["scheme"], result["architecture"], result["activations"]
    if not marks:
        raise ValueError(f"{run} trained float weights: there is nothing to pack")
    found, codes = {}, {}
    for name, planes in marks.items():
        found[name], codes[name] = _recover(name, state[weight_key(name)], planes)
    blob = pack(state, found, codes, architecture, activations, recipe)
    write_whole(Path(path), lambda file: file.write(blob))
    return len(blob)


def _result(run: Path) -> dict[str, Any]:
    file = run / "result.json"
    if not file.exists():
        raise FileNotFoundError(f"{run} is no finished run (it has no result.json): give the run_dir of csq.fit, "
                                "or the .json of a row that was kept")  # fmt: skip
    result = json.loads(file.read_text("utf8"))
    return {"scheme": {}, "architecture": None, "activations": {}} | result


def _recover(name: str, weight: Tensor, marks: str) -> tuple[Scheme, Integers]:
    """Step and integers of a hardened weight of which only the values and the planes were kept.

    The smallest weight is a small integer of steps: of the steps that it allows, the largest for
    which every weight is a step times an integer that the planes can hold.
    """
    kept = tuple(b for b, mark in enumerate(marks[::-1]) if mark != ".")
    limit = sum(2**b for b in kept) >> min(kept, default=0)
    sizes = weight.abs().double().unique()
    smallest = float(sizes[sizes > 0].min()) if (sizes > 0).any() else 1.0
    for divisor in range(1, limit + 1):
        near = np.float32(smallest / divisor)
        for step in map(float, (near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf)))):
            codes = (weight.double() / step).round()
            if codes.abs().max() <= limit and torch.equal((codes.to(torch.float32) * step).to(weight.dtype), weight):
                filled = tuple(b for b in kept if marks[::-1][b] == "F")
                return Scheme(len(marks), kept, filled, step), Integers(codes.to(torch.int16), step, kept, weight.shape)
    if not weight.any():
        return Scheme(len(marks), kept, (), 1.0), Integers(weight.to(torch.int16), 1.0, kept, weight.shape)
    raise ValueError(f"{weight_key(name)} is no step times integers of {len(kept)} planes: it was changed since")
