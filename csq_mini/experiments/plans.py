"""What can be reproduced: networks and their data, methods, how much of a run, and the recipe that follows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import data as datasets
from .. import models, recipes
from ..check import unknown, whole
from ..recipes import Recipe
from .baselines.loop import GIVEN, SEARCHES

SETUPS: Mapping[str, tuple[str, str]] = {
    "digits": ("digits_cnn", "digits"),
    "resnet20-cifar10": ("resnet20", "cifar10"),
    "vgg19bn-cifar10": ("vgg19bn", "cifar10"),
    "resnet20-cifar100": ("resnet20", "cifar100"),
    "paper-resnet20": ("resnet20", "cifar10"),
    "resnet8-cifar10": ("resnet8", "cifar10"),
    "mnist": ("mnist_cnn", "mnist"),
    "resnet18-imagenet": ("resnet18", "image_folder"),
    "resnet50-imagenet": ("resnet50", "image_folder"),
}
"""The network and data set that each named recipe is for."""

PARTS: Mapping[str, Callable[[Recipe], dict[str, Any]]] = {
    "csq": lambda r: {},
    "float": lambda r: {"target": None},
    "no-masks": lambda r: {"search_epochs": 0, "finetune_epochs": r.search_epochs + r.finetune_epochs},
    "no-finetune": lambda r: {"search_epochs": r.search_epochs + r.finetune_epochs, "finetune_epochs": 0},
    "one-rate": lambda r: {"one_rate": True},
    "free-masks": lambda r: {"masks": "free", "hold": False},
    "no-growth": lambda r: {"growth": False},
    "unweighted": lambda r: {"weighted": False},
    "no-recalibration": lambda r: {"recalibration_batches": 0},
}
"""CSQ, float training, and CSQ with the paper's masks or without one of its parts, as changes to the recipe."""

METHODS: Mapping[str, Callable[[Recipe], dict[str, Any]]] = {
    **PARTS,
    **dict.fromkeys((*GIVEN, *SEARCHES), lambda r: {}),
}
"""All of these, and the baselines, which train by the recipe as it is."""


@dataclass(frozen=True)
class Profile:
    """How much of a reproduction is run."""

    about: str  # what it is for
    images: Mapping[str, int]  # training images used, by network; all of them for a network that is not named
    changes: Mapping[str, Any]  # to the recipe
    needs_gpu: bool = False


GENTLE = {"batch_size": 128, "lr": 0.003, "logit_lr": 0.1, "warmup_epochs": 0.2, "recalibration_batches": 10,
          "checkpoint_steps": 200}  # fmt: skip

PROFILES: Mapping[str, Profile] = {
    "smoke": Profile(
        "half a minute on two CPU cores, to see that everything works, not how well",
        {"resnet20": 2560, "vgg19bn": 96},
        {"search_epochs": 2, "finetune_epochs": 1, "batch_size": 64, "lr": 0.02, "logit_lr": 0.5,
         "warmup_epochs": 0.2, "recalibration_batches": 4},
    ),
    "cpu": Profile(
        "up to an hour on two CPU cores, best begun from a float checkpoint; with the paper's free masks",
        {},
        # High rates soon spoil a trained network: three times these close the masks within two epochs, but cost a
        # point of accuracy that five more do not win back. Here the search only ranks planes, and the freeze cuts them.
        {"search_epochs": 2, "finetune_epochs": 5, "masks": "free", **GENTLE},
    ),
    "held": Profile(
        "up to an hour on two CPU cores, from a float checkpoint whose weights the search holds",
        {},
        # A trained network needs no soft bits to begin with.
        {"search_epochs": 1, "finetune_epochs": 6, "hold": True, "beta_start": 10.0, **GENTLE},
    ),
    "bed": Profile("the recipe as it is on any device, for networks small enough for one CPU core", {}, {}),
    "full": Profile("the whole recipe, on one GPU", {}, {}, needs_gpu=True),
}  # fmt: skip


def plan(
    method: str, model: str, data: str, target: float, seed: int, profile: str, *,
    activation_bits: int | None = None, epochs: int | None = None, changes: Mapping[str, Any] | None = None,
) -> Recipe:  # fmt: skip
    """The recipe that :func:`csq_mini.reproduce` runs for these parameters; raises ValueError and TypeError as it does.

    The profile changes the recipe of the network first, then ``epochs``, then ``changes``, then the method.
    """
    for name in sorted({"target", "seed", "activation_bits"} & {*(changes or {})}):
        raise ValueError(f"changes must not hold {name!r}, which is an argument of its own: give {name}=... instead")
    for kind, name, known in (("method", method, METHODS), ("profile", profile, PROFILES),
                              ("model", model, models.MODELS), ("data set", data, datasets.DATA)):  # fmt: skip
        if name not in known:
            raise ValueError(unknown(kind, name, known))
    fitting = [name for name, setup in SETUPS.items() if setup == (model, data)]
    if not fitting:
        pairs = ", ".join(f"{m} on {d}" for m, d in dict.fromkeys(SETUPS.values()))
        raise ValueError(f"no recipe for {model} on {data}; there are {pairs}. csq.fit takes any other pair")
    own = {"target": target, "seed": seed, "activation_bits": activation_bits}
    recipe = recipes.get(fitting[0], **PROFILES[profile].changes, **own)
    if epochs is not None:
        epochs = whole("epochs", epochs, 1)
        part = recipe.search_epochs / (recipe.search_epochs + recipe.finetune_epochs)
        search = max(round(epochs * part), 1 if part else 0)
        recipe = recipe.replace(search_epochs=search, finetune_epochs=epochs - search)
    recipe = recipe.replace(**(changes or {}))
    return recipe.replace(**METHODS[method](recipe))
