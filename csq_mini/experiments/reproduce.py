"""One run, one row: :func:`reproduce` turns parameters into a trained network and a row of results."""

import hashlib
import json
import os
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import data as datasets
from .. import models
from ..check import whole
from ..files import write_state
from ..packed import save_packed
from ..recipes import Recipe
from ..train import Result, evaluate, fit
from .baselines.loop import run
from .baselines.request import check_allocation
from .checkpoints import existing, read_state
from .plans import METHODS, PARTS, PROFILES, SETUPS, plan
from .rows import SCHEMA, Row, commit, read_row, where, write_row

__all__ = ["METHODS", "PROFILES", "SETUPS", "plan", "read_state", "reproduce"]

FOLDED = ("digits", "mnist")  # cut into five folds by us, as nobody else has cut them
BEFORE: dict[str, Any] = {"masks": "free", "optimizer": "sgd", "hold": False}  # in rows older than these fields


def reproduce(
    method: str = "csq", model: str = "resnet20", data: str = "cifar10", target: float = 2.0, seed: int = 0,
    profile: str = "smoke", *,
    scheme: str | Path | None = None, activation_bits: int | None = None, epochs: int | None = None,
    changes: Mapping[str, Any] | None = None, fold: int | None = None,
    start: str | Path | None = None, device: str | None = None, run_dir: str | Path | None = None,
    data_root: str | Path | None = None,
    results: str | Path = "results", keep: bool = False, progress: bool = True,
) -> Row:  # fmt: skip
    """Train one network as the parameters say, and write a row of results.

    A finished run with the same recipe and start is not repeated: its row is read back. One that was stopped goes on
    from its last checkpoint.

    Args:
        method: one of ``METHODS``: "csq", "float", CSQ with the paper's masks or without one of its parts,
            or a baseline.
        model, data: names in ``csq.models`` and ``csq.data``, a pair that a recipe exists for.
        target: average paper bits a weight; "float" ignores it.
        seed: of the initial weights, the order of the images, and their augmentation.
        profile: one of ``PROFILES``: "smoke", "cpu", "held", "bed" or "full".
        scheme: how a baseline that needs one gets the planes of its layers: a name of ``ALLOCATIONS``, with a seed of
            its own ("random:17") or that of the run; or the path of a JSON file with planes by layer, such as a row.
            None is "uniform". What is measured is measured on ``start``.
        activation_bits: bits of the activations, by PACT; None leaves them float.
        epochs: in all, divided between the phases as the recipe divides its own; None as in the profile.
        changes: fields of the recipe with values of your own, such as ``{"lr": 0.01}``; they are part of the key.
        fold: part of "digits" or "mnist" that is the test set, 0 to 4; None is the first.
        start: a checkpoint to begin from (see ``read_state``); None begins from random weights, which a recipe with
            ``hold`` does not take (profile "held").
        device: None takes the first GPU if there is one, else the CPU.
        run_dir: folder of the run; None is ``runs/<key>``.
        data_root: folder of the data sets; None is ``CSQ_DATA``, else ``data``.
        results: folder that gets the row, <key>.json; by default ``results`` in the present folder. The key names
            the parameters, and the digest of ``start`` where there is a row of another one already.
        keep: also keep the model there: packed (.safetensors), a float one as its state_dict (.pt).
        progress: whether to show a progress bar.

    Raises:
        ValueError: for a bad argument, a checkpoint that does not fit, or a run folder of another run.
        TypeError: for a change to a field that a recipe does not have.
        FileNotFoundError: if the data set or the checkpoint is not there.
        OSError: if the row cannot be written.
    """
    made_by = commit()  # now: the sources may change while it trains
    recipe = plan(method, model, data, target, seed, profile,
                  activation_bits=activation_bits, epochs=epochs, changes=changes)  # fmt: skip
    fold = _fold(data, fold)
    _check_start(recipe, start)
    device, allocation = _device(device, profile), check_allocation(method, scheme, start)
    label = allocation.label if allocation else None
    named, origin = f"{method}-{label}" if label else method, _origin(start)
    key = _key(named, model, data, recipe, profile, epochs, start, changes, fold)
    key, done = _there(results, key, recipe, origin)
    if done:
        return done
    _check_folder(Path(results))
    images = _images(data, data_root, PROFILES[profile].images.get(model), fold)
    torch.manual_seed(seed)
    network, began = models.get(model)(num_classes=images.classes), None
    if start is not None:
        _load(network, start, model)
        began = evaluate(network.to(device), images.to(device))
    options: Any = {"run_dir": run_dir or Path("runs") / key, "device": device, "progress": progress}
    if method in PARTS:
        result = fit(network, images, recipe, **options)
    else:
        planes = allocation.planes(network.to(device), images.to(device), recipe) if allocation else None
        result = run(method, network, images, recipe, planes, **options)
    row = Row(
        schema=SCHEMA, key=key, method=method, model=model, data=data, seed=seed, profile=profile, start=origin,
        start_accuracy=began, train_images=len(images.train[1]), test_images=len(images.test[1]),
        target=recipe.target, activation_bits=recipe.activation_bits, search_epochs=recipe.search_epochs,
        finetune_epochs=recipe.finetune_epochs, recipe=_plain(recipe), allocation=label, fold=fold,
        **_outcome(result), **{**where(device), "commit": made_by},
    )  # fmt: skip
    if keep:
        _keep(result, Path(results), key)
    write_row(results, row, result.history)
    return row


def _origin(start: str | Path | None) -> str | None:
    """File name and digest of a checkpoint: a row says where it began without naming anybody's folders."""
    if start is None:
        return None
    path = existing(start)
    with open(path, "rb") as file:
        return f"{path.name}, sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"


def _check_start(recipe: Recipe, start: str | Path | None) -> None:
    if start is None and recipe.hold and recipe.target is not None and recipe.search_epochs:
        raise ValueError("the search of this recipe holds the weights of a trained network (hold is True): give "
                         "start=..., a checkpoint, or changes={'hold': False}")  # fmt: skip


def _device(device: str | None, profile: str) -> str:
    there = torch.cuda.is_available()
    device = device or ("cuda" if there else "cpu")
    if PROFILES[profile].needs_gpu and not there and device == "cpu":
        raise ValueError(f"profile {profile!r} needs a GPU, and torch sees none: use profile 'cpu' or 'smoke'")
    return device


def _fold(data: str, fold: int | None) -> int | None:
    """The fold, or a ValueError if the data set has none; the first one is what is read if nothing is said."""
    if fold is not None and data not in FOLDED:
        raise ValueError(f"{data} has no folds, got fold={fold!r}: leave it out, or use {' or '.join(FOLDED)}")
    return None if fold is None else whole("fold", fold, 0, 4)


def _key(
    method: str, model: str, data: str, recipe: Recipe, profile: str, epochs: int | None, start: str | Path | None,
    changes: Mapping[str, Any] | None = None, fold: int | None = None,
) -> str:  # fmt: skip
    parts = [model, data, *(["pretrained"] if start is not None else []), method]
    parts += [f"w{recipe.target}".removesuffix(".0")] if recipe.target is not None else []
    parts += [f"a{recipe.activation_bits}"] if recipe.activation_bits is not None else []
    parts += [profile, *([f"{epochs}epochs"] if epochs else [])]
    parts += [f"{name}{_word(value)}" for name, value in sorted((changes or {}).items())]
    return "-".join([*parts, *([f"fold{fold}"] if fold is not None else []), f"seed{recipe.seed}"])


def _word(value: Any) -> str:
    """A value as part of a file's name."""
    text = "+".join(value) if isinstance(value, (tuple, list)) else str(value)
    return re.sub(r"[^\w.+-]", "_", text)


def _there(results: str | Path, key: str, recipe: Recipe, origin: str | None) -> tuple[str, Row | None]:
    """The key of a run, and its row if it is there; a row of another checkpoint keeps the short key."""
    done = _row(results, key)
    if done and origin and done.start != origin:
        key = f"{key}-{origin[-16:-8]}"
        done = _row(results, key)
    return key, done if done and _same_run(done, recipe, origin) else None


def _check_folder(folder: Path) -> None:
    """OSError if rows cannot be written to a folder, there or not yet: to be known before training, not after it."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is no folder" if not there.is_dir() else "cannot be written to"
        raise OSError(f"no rows can be written to {folder}: {there} {why}; give another folder as results")


def _row(results: str | Path, key: str) -> Row | None:
    file = Path(results) / f"{key}.json"
    return read_row(file) if file.exists() else None


def _same_run(row: Row, recipe: Recipe, origin: str | None) -> bool:
    # How often a run is saved does not change its result, nor does how it searches, where nothing is searched.
    same: dict[str, Any] = {"checkpoint_steps": recipe.checkpoint_steps}
    if recipe.target is None or not recipe.search_epochs:
        same |= {"masks": recipe.masks, "hold": recipe.hold}
    return {**BEFORE, **row.recipe, **same} == _plain(recipe) and row.start == origin


def _plain(recipe: Recipe) -> dict[str, Any]:
    return json.loads(json.dumps(recipe.to_dict()))


def _images(name: str, root: str | Path | None, limit: int | None, fold: int | None) -> datasets.Data:
    load = datasets.get(name)
    if name in FOLDED:  # they come without files
        return load() if fold is None else load(fold)
    return load(root=root, limit=limit)


def _load(network: nn.Module, start: str | Path, model: str) -> None:
    state = read_state(start)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{start} does not fit {model}: {error}") from None


def _outcome(result: Result) -> dict[str, Any]:
    """What the run came to, as fields of the row."""
    speed = statistics.median(result.history["images_per_second"])
    untimed = result.history.drop(columns=["seconds", "images_per_second"]).to_csv(index=False)
    outcome = {"accuracy": result.accuracy, "seconds": result.seconds, "images_per_second": speed,
               "history_digest": hashlib.sha256(untimed.encode()).hexdigest()}  # fmt: skip
    if result.report is None:
        size = sum(t.nbytes for t in result.model.state_dict().values())
        return outcome | {"paper_bits": 32.0, "stored_bits": 32.0, "bytes": size, "original_bytes": size, "scheme": {}}
    total = result.report.total
    return outcome | {
        "paper_bits": total.paper_bits, "stored_bits": total.stored_bits, "bytes": total.bytes + total.float_bytes,
        "original_bytes": total.original_bytes, "scheme": {layer.name: layer.planes for layer in result.report.rows},
    }  # fmt: skip


def _keep(result: Result, folder: Path, key: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if result.report is not None:
        save_packed(result.model, folder / f"{key}.safetensors", result.recipe)
        return
    write_state(folder / f"{key}.pt", {name: t.cpu() for name, t in result.model.state_dict().items()})
