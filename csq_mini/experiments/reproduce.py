"""One run, one row: :func:`reproduce` turns parameters into a trained network and a row of results.

The command line, the reproduction pages and papermill all call it; ``rows.py`` writes the row and
reads all of them back.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import data as datasets
from .. import models, recipes
from ..check import unknown
from ..recipes import Recipe
from ..train import Result, evaluate, fit
from .machine import commit, hardware, versions
from .rows import SCHEMA, Row, default_results, read_row, write_row

if TYPE_CHECKING:
    import pandas

SETUPS: Mapping[str, tuple[str, str]] = {
    "digits": ("digits_cnn", "digits"),
    "resnet20-cifar10": ("resnet20", "cifar10"),
    "vgg19bn-cifar10": ("vgg19bn", "cifar10"),
    "resnet20-cifar100": ("resnet20", "cifar100"),
    "paper-resnet20": ("resnet20", "cifar10"),
    "resnet18-imagenet": ("resnet18", "image_folder"),
    "resnet50-imagenet": ("resnet50", "image_folder"),
}
"""Network and data that a named recipe was made for."""

METHODS: Mapping[str, Callable[[Recipe], dict[str, Any]]] = {
    "csq": lambda r: {},
    "float": lambda r: {"target": None},
    "no-masks": lambda r: {"search_epochs": 0, "finetune_epochs": r.search_epochs + r.finetune_epochs},
    "no-finetune": lambda r: {"search_epochs": r.search_epochs + r.finetune_epochs, "finetune_epochs": 0},
    "one-rate": lambda r: {"one_rate": True},
    "no-growth": lambda r: {"growth": False},
    "unweighted": lambda r: {"weighted": False},
    "no-recalibration": lambda r: {"recalibration_batches": 0},
}
"""CSQ, float training, and CSQ with one part taken away: what each changes in the recipe. Without
masks every layer has the same precision from the start."""


@dataclass(frozen=True)
class Profile:
    """How much of a reproduction is run.

    Attributes:
        about: what it is for, in one line.
        images: training images used, by network; None for all of them.
        changes: what it changes in the recipe.
        needs_gpu: whether a CPU would take days.
    """

    about: str
    images: Mapping[str, int | None]
    changes: Mapping[str, Any]
    needs_gpu: bool = False


PROFILES: Mapping[str, Profile] = {
    "smoke": Profile(
        "half a minute on two CPU cores: shows that everything works, not how well",
        {"resnet20": 2560, "vgg19bn": 96},
        {"search_epochs": 2, "finetune_epochs": 1, "batch_size": 64, "lr": 0.02, "logit_lr": 0.5, "strength": 1.0,
         "warmup_epochs": 0.2, "recalibration_batches": 4},
    ),
    "cpu": Profile(
        "an hour or less on two CPU cores, from a float checkpoint where one is given",
        {},
        # A trained network fits its training images already and is soon harmed: at three times these rates the masks do
        # close within two epochs, and the network loses a point that five more do not bring back. At these rates the
        # search puts the planes in an order, and the freeze does the cutting.
        {"search_epochs": 2, "finetune_epochs": 5, "batch_size": 128, "lr": 0.003, "logit_lr": 0.1,
         "warmup_epochs": 0.2, "recalibration_batches": 10, "checkpoint_steps": 200},
    ),
    "full": Profile("the whole recipe, on one GPU", {}, {}, needs_gpu=True),
}  # fmt: skip


def reproduce(
    method: str = "csq", model: str = "resnet20", data: str = "cifar10", target: float = 2.0, seed: int = 0,
    profile: str = "smoke", *,
    activation_bits: int | None = None, epochs: int | None = None, start: str | Path | None = None,
    device: str | None = None, run_dir: str | Path | None = None, data_root: str | Path | None = None,
    results: str | Path | None = None, keep: bool = False, progress: bool = True,
) -> Row:  # fmt: skip
    """Train one network as the parameters say, and write what it came to as a row of results.

    A run whose row is there already, made with the same recipe and start, is not repeated. A run
    that was cut goes on from its last checkpoint.

    Args:
        method: one of ``METHODS``: "csq", "float", or CSQ with a part taken away.
        model, data: names in ``csq.models`` and ``csq.data`` that a recipe exists for.
        target: average paper bits a weight; not looked at for "float".
        seed: of the initial weights, the order of the images, and their augmentation.
        profile: one of ``PROFILES``: "smoke", "cpu" or "full".
        activation_bits: bits of the activations, by PACT; None leaves them float.
        epochs: in all, shared between the phases as the recipe shares them; None as the profile says.
        start: a float checkpoint to begin from (.safetensors, .pt or .pt.xz with a state_dict).
        device: None takes the first GPU if there is one, else the CPU.
        run_dir: folder of the run; None is ``runs/<key>``.
        data_root: folder of the data sets; None is ``CSQ_DATA``, else ``data``.
        results: folder that gets the row; None is the book's, ``book/results/rows``.
        keep: whether to keep the hardened model's state_dict beside the row, compressed.
        progress: whether to show a progress bar.

    Returns:
        The :class:`Row`.

    Raises:
        ValueError: for an unknown name or a value out of range, a profile that needs a GPU where
            there is none, a checkpoint that does not fit, or a run folder of another run.
        FileNotFoundError: if the data set or the checkpoint is not there.
    """
    made_by = commit()  # now, for the sources may have changed when the run ends
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    recipe = plan(method, model, data, target, seed, profile, activation_bits=activation_bits, epochs=epochs)
    if PROFILES[profile].needs_gpu and not torch.cuda.is_available() and device == "cpu":
        raise ValueError(f"profile {profile!r} needs a GPU, and torch sees none: use profile 'cpu' or 'smoke'")
    origin = _name_of(start)
    key = _key(method, model, data, recipe, profile, epochs, start is not None)
    folder = Path(results) if results is not None else default_results()
    if (there := _row_there(folder, key)) and _same_run(there, recipe, origin):
        return there
    images = PROFILES[profile].images.get(model)
    loaded = datasets.get(data)(**({} if data == "digits" else {"root": data_root, "limit": images}))
    torch.manual_seed(seed)
    network = models.get(model)(num_classes=loaded.classes)
    began = None
    if start is not None:
        _load(network, read_state(start), start, model)
        began = evaluate(network.to(device), loaded.to(device))
    result = fit(network, loaded, recipe, run_dir=run_dir or Path("runs") / key, device=device, progress=progress)
    row = _row(result, loaded, key, method, model, data, seed, profile, origin, began, device, made_by)
    write_row(folder, row, result.history, result.model if keep else None)
    return row


def plan(
    method: str, model: str, data: str, target: float, seed: int, profile: str, *,
    activation_bits: int | None = None, epochs: int | None = None,
) -> Recipe:  # fmt: skip
    """The recipe that :func:`reproduce` runs for these parameters; raises ValueError as it does."""
    for kind, name, known in (("method", method, METHODS), ("profile", profile, PROFILES)):
        if name not in known:
            raise ValueError(unknown(kind, name, known))
    models.get(model), datasets.get(data)
    fitting = [name for name, setup in SETUPS.items() if setup == (model, data)]
    if not fitting:
        pairs = ", ".join(f"{m} on {d}" for m, d in dict.fromkeys(SETUPS.values()))
        raise ValueError(f"no recipe for {model} on {data}; there are {pairs}. csq.fit takes any other pair")
    changes = {**PROFILES[profile].changes, "target": target, "seed": seed, "activation_bits": activation_bits}
    recipe = recipes.get(fitting[0], **changes)
    if epochs is not None:
        search = round(epochs * recipe.search_epochs / (recipe.search_epochs + recipe.finetune_epochs))
        recipe = recipe.replace(search_epochs=search, finetune_epochs=epochs - search)
    return recipe.replace(**METHODS[method](recipe))


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The state_dict in a .safetensors, .pt or .pt.xz file.

    Raises:
        FileNotFoundError: if there is no such file. ValueError: if it is not what its name says.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: give the path of a .safetensors, .pt or .pt.xz file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = lzma.open(path) if path.suffix == ".xz" else open(path, "rb")
        with content as file:
            return torch.load(io.BytesIO(file.read()), map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except Exception as error:  # each format has its own kinds
        raise ValueError(f"{path} is no {path.suffix} file with a state_dict ({error})") from error


def _key(
    method: str, model: str, data: str, recipe: Recipe, profile: str, epochs: int | None, pretrained: bool
) -> str:  # fmt: skip
    parts = [model, data, *(["pretrained"] if pretrained else []), method]
    parts += [f"w{recipe.target:g}"] if recipe.target is not None else []
    parts += [f"a{recipe.activation_bits}"] if recipe.activation_bits is not None else []
    return "-".join([*parts, profile, *([f"{epochs}epochs"] if epochs else []), f"seed{recipe.seed}"])


def _load(network: torch.nn.Module, state: dict[str, torch.Tensor], path: str | Path, model: str) -> None:
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not fit {model}: {error}") from None


def _name_of(start: str | Path | None) -> str | None:
    """File name and digest, by which a row says where it began without saying whose disk that was on."""
    if start is None:
        return None
    path = Path(start)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: give the path of a .safetensors, .pt or .pt.xz file")
    return f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def _row_there(folder: Path, key: str) -> Row | None:
    file = folder / f"{key}.json"
    return read_row(file) if file.exists() else None


def _same_run(row: Row, recipe: Recipe, origin: str | None) -> bool:
    saved = {"checkpoint_steps": recipe.checkpoint_steps}  # how often changes nothing in the result
    return {**row.recipe, **saved} == _plain(recipe) and row.start == origin


def _plain(recipe: Recipe) -> dict[str, Any]:
    return json.loads(json.dumps(recipe.to_dict()))


def _row(
    result: Result, data: datasets.Data, key: str, method: str, model: str, data_name: str, seed: int, profile: str,
    origin: str | None, began: float | None, device: str, made_by: str | None,
) -> Row:  # fmt: skip
    recipe, total = result.recipe, result.report.total if result.report else None
    size = sum(t.numel() * t.element_size() for t in result.model.state_dict().values())
    return Row(
        SCHEMA, key, method, model, data_name, recipe.target, recipe.activation_bits, seed, profile,
        recipe.search_epochs, recipe.finetune_epochs, origin, began, result.accuracy,
        len(data.train[1]), len(data.test[1]),
        total.paper_bits if total else 32.0, total.stored_bits if total else 32.0,
        total.bytes + total.float_bytes if total else size, total.original_bytes if total else size,
        {row.name: row.planes for row in result.report.rows} if result.report else {},
        _digest(result.history), result.seconds, statistics.median(result.history["images_per_second"]),
        torch.device(device).type, hardware(device), versions(), made_by, _plain(recipe),
    )  # fmt: skip


def _digest(history: pandas.DataFrame) -> str:
    table = history.drop(columns=["seconds", "images_per_second"]).to_csv(index=False)
    return hashlib.sha256(table.encode()).hexdigest()
