"""The one loop that trains every baseline: the same data order, epochs, schedule, and judging at the end."""

import json
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...check import unknown
from ...conversion import convertible
from ...data import Data
from ...data.dataset import usable
from ...modules import copied
from ...packed.save import check_packable
from ...planes import csq_layers
from ...recipes import Recipe
from ...report import report
from ...scheme import schemes
from ...train import Result, Trainer, accuracy, evaluate
from ...train.fit import train_to_the_end
from ...train.identity import identity
from ...train.run_folder import RunFolder
from .allocations import GIVEN, check_scheme
from .bsq import BIT_RATE, BitPlanes, GroupLasso
from .learned_bits import MemorySearch, StepAndRange
from .quantizers import LSQ, DoReFa, attach, exact
from .search import Search

SEARCHES: Mapping[str, type[Search]] = {"learned-bits": MemorySearch, "bsq": GroupLasso}
"""Methods that find them."""

LARGE_CUT = 0.25  # bits a weight; more than that, taken where a search is settled, is worth a warning


def run(
    method: str, model: nn.Module, data: Data, recipe: Recipe, planes: Mapping[str, int] | None = None, *,
    run_dir: str | Path | None = None, device: str | None = None, progress: bool = True, loss: Any = F.cross_entropy,
) -> Result:  # fmt: skip
    """Train a float model by a baseline, and judge it as :func:`csq_mini.fit` does: hard, recalibrated, packed.

    A copy is trained. A killed run goes on from ``run_dir`` and ends in the same bits. The history is that of
    :func:`csq_mini.fit`; ``cut`` is added, the bits a weight that settling a search has taken away.

    Args:
        method: of ``GIVEN`` or ``SEARCHES``; "round" trains nothing.
        recipe: as for CSQ, its target the bits a weight. A method that is given its planes trains for all epochs; one
            that finds them searches for ``search_epochs``, and trains on with fixed planes.
        planes: by layer name, for a method of ``GIVEN``.

    Raises ValueError for an unknown method, planes that do not fit the model or the target, and as fit does.
    """
    if method not in (*GIVEN, *SEARCHES):
        raise ValueError(unknown("baseline", method, (*GIVEN, *SEARCHES)))
    if recipe.target is None:
        raise ValueError("a baseline needs a target in bits a weight, got None: recipe.replace(target=2.0)")
    if (planes is not None) != (method in GIVEN):
        raise ValueError(f"method {method!r} " + ("finds its own planes: leave them out" if planes else
                         "needs the planes of each layer: csq_mini.experiments.baselines.allocations"))  # fmt: skip
    sizes = {name: layer.weight.numel() for name, layer in convertible(model, recipe.skip)[0].items()}  # type: ignore
    if planes is not None:
        check_scheme(planes, sizes, recipe.target, recipe.planes)
    check_packable(model)
    place = usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    trainer, harden = prepared(method, copied(model).to(place), data.to(place), recipe, planes, loss)
    known = identity(model, data, loss, accuracy) | {"method": method, "scheme": json.dumps(planes)}
    with RunFolder(run_dir, known, recipe, place, trainer.bfloat16) if run_dir else nullcontext() as folder:
        if method != "round":
            train_to_the_end(trainer, folder, progress)
        return _finish(trainer, harden, recipe, folder)


def prepared(
    method: str, model: nn.Module, data: Data, recipe: Recipe, planes: Mapping[str, int] | None, loss: Any
) -> tuple[Trainer, Callable[[], nn.Module]]:  # fmt: skip
    """A trainer for the method, of a network that it changes, and what gives that hardened and recalibrated.

    Arguments are those of :func:`run`, which checks them.
    """
    make: Any = {"ste": DoReFa, "lsq": LSQ, "learned-bits": StepAndRange}.get(method)
    start = partial(Trainer, loss=loss, bfloat16=next(model.parameters()).is_cuda)
    if method in ("planes", "round"):
        epochs = recipe.search_epochs + recipe.finetune_epochs
        trainer = start(model, data, recipe.replace(search_epochs=0, finetune_epochs=epochs))
        for name, layer in csq_layers(model).items():
            layer.freeze((planes or {})[name])
        return trainer, trainer.hardened
    if method == "bsq":
        make = partial(BitPlanes, speed=BIT_RATE**0.5)
    counts = planes or dict.fromkeys(convertible(model, recipe.skip)[0], recipe.planes)
    attach(model, make, counts, recipe.planes, recipe.skip)
    trainer = start(model, data, recipe.replace(target=None))
    search = SEARCHES[method](trainer, recipe, recipe.target or 0) if method in SEARCHES else None

    def harden() -> nn.Module:
        return trainer.recalibrated(exact(model))

    trainer.on_epoch = partial(_judge, trainer, harden, search)
    return trainer, harden


def _judge(trainer: Trainer, harden: Callable[[], nn.Module], search: Search | None, entry: dict[str, Any]) -> None:
    """Add to an entry of the history what it says of the hardened model."""
    hard = harden()
    counts = {name: len(scheme.kept) for name, (_, scheme) in schemes(hard).items()}
    entry |= {"hard": evaluate(hard, trainer.data, "valid", trainer.metric), "bits": report(hard).total.paper_bits}
    entry |= {f"bits/{name}": k for name, k in counts.items()}
    if search:
        entry["cut"] = sum(search.sizes[name] * k for name, k in search.cut().items()) / search.total


def _finish(trainer: Trainer, harden: Callable[[], nn.Module], recipe: Recipe, folder: RunFolder | None) -> Result:
    import pandas

    start, hard = time.perf_counter(), harden()
    history = pandas.DataFrame(trainer.history or [_untrained(trainer, hard)])
    if (cut := history.get("cut", pandas.Series([0.0])).iloc[-1]) > LARGE_CUT:
        warnings.warn(f"the search ended {cut:.2f} bits above the target, which were cut when it was settled: raise "
                      f"strength ({recipe.strength}) or search_epochs ({recipe.search_epochs})",
                      stacklevel=3)  # fmt: skip
    score, table = evaluate(hard, trainer.data, "test", trainer.metric), report(hard)
    seconds = float(history["seconds"].sum()) + time.perf_counter() - start
    if folder:
        folder.write_result(hard, score, table, recipe)
    return Result(hard.eval(), score, history, table, recipe, seconds)


def _untrained(trainer: Trainer, hard: nn.Module) -> dict[str, Any]:
    """The history of a model that was rounded and not trained."""
    start = time.perf_counter()
    score = evaluate(hard, trainer.data, "valid", trainer.metric)
    return {"phase": "round", "epoch": 0, "step": 0, "soft": score, "hard": score,
            "seconds": time.perf_counter() - start, "images_per_second": 0.0,
            "bits": report(hard).total.paper_bits}  # fmt: skip
