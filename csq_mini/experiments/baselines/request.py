"""What a user asks for as the scheme of a baseline, checked before anything is trained."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ...check import unknown
from ...data import Data
from ...recipes import Recipe
from .allocations import ALLOCATIONS, GIVEN, MEASURED, allocate, read_scheme
from .solver import Planes


@dataclass(frozen=True)
class Allocation:
    """Where the planes of the layers come from: a name of ``ALLOCATIONS``, or a file that has been read."""

    label: str  # a part of the run's key, such as "random17"
    name: str | None
    seed: int | None = None  # None is that of the run
    read: Planes | None = None

    def planes(self, network: nn.Module, data: Data, recipe: Recipe) -> Planes:
        """The planes by layer for a float network, and for a recipe's target, seed and skipped layers."""
        if self.read is not None or self.name is None:
            return self.read or {}
        seed = recipe.seed if self.seed is None else self.seed
        return allocate(self.name, network, data, recipe.target or 0, seed, recipe.skip)


def check_allocation(method: str, scheme: str | Path | None, start: str | Path | None) -> Allocation | None:
    """What ``scheme`` means for a method; None for one that finds its own.

    ValueError for a scheme that the method does not take, an unknown name, a file that holds none, or one that must be
    measured on a trained network where there is no ``start``.
    """
    if method not in GIVEN:
        if scheme is not None:
            raise ValueError(f"method {method!r} finds its own scheme, got scheme={str(scheme)!r}: leave it out, or "
                             f"take one of {', '.join(GIVEN)}")  # fmt: skip
        return None
    text = "uniform" if scheme is None else str(scheme)
    if text.endswith(".json"):
        planes = read_scheme(text)
        digest = hashlib.sha256(json.dumps(planes, sort_keys=True).encode()).hexdigest()
        return Allocation(f"{Path(text).stem}-{digest[:8]}", None, read=planes)
    name, sign, seed = text.partition(":")
    if name not in ALLOCATIONS:
        raise ValueError(unknown("scheme", name, ALLOCATIONS) + "; or give the path of a .json file")
    if sign and not (seed.isascii() and seed.isdecimal()):
        raise ValueError(f"scheme {text!r} must end in a seed, a whole number of at least 0: {name}:0")
    if name in MEASURED and start is None:
        raise ValueError(f"scheme {name!r} is measured on a trained network: give a float checkpoint as start, or the "
                         ".json file of a scheme")  # fmt: skip
    return Allocation(name + seed, name, int(seed) if sign else None)
