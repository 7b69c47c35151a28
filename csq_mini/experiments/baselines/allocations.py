"""Schemes made before the training: how many planes each layer gets under a budget, by rules, chance and measurement.

Each function of ``ALLOCATIONS`` takes a float network, data, a target in bits a weight and a seed, and gives planes by
layer name that fit. Those that measure take a trained network; they look at training images alone.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...check import unknown, whole
from ...data import Data
from ...files import read_json
from ...report import paper_bits
from ...targets import capacity, check_target, planes_in
from .rounding import JointLoss
from .solver import Planes, Sizes, cheapest, local_search

GIVEN = ("planes", "round", "ste", "lsq")
"""Methods that are given the planes of each layer."""

MOST = 8
SMALL, SMALL_PLANES = 0.008, 6  # a layer below this share of the weights gets so many planes by hand
TRIALS = 160  # of the local search on the joint loss
FEW = (1, 2, 3)  # planes of two layers whose joint rise "pairs" measures; with more the second layer hardly matters
PREDICTIONS = 20_000  # trials of the local search on predicted losses, which cost nothing


def uniform(sizes: Sizes, target: float) -> Planes:
    """The whole part of the target everywhere; then each layer from the input on gets one more if it still fits."""
    planes = dict.fromkeys(sizes, min(int(target), MOST))
    return _raised(planes, sizes, target, sizes) if int(target) < MOST else planes


def _raised(planes: Planes, sizes: Sizes, target: float, names: Iterable[str]) -> Planes:
    """One plane more for each of these layers that still fits, in their order."""
    planes, room = dict(planes), capacity(target, sizes)
    for name in names:
        if planes_in(sizes, planes) + sizes[name] <= room and planes[name] < MOST:
            planes[name] += 1
    return planes


def by_hand(sizes: Sizes, target: float) -> Planes:
    """Six planes for each layer below 0.8 % of the weights, the target for the rest, as people do in a minute.

    Where that is too much, the large layers lose a plane each, the last first, again and again; then the small ones.
    Where there is room, large layers from the input on get one more. Without small layers it is uniform.
    """
    small = {name for name, size in sizes.items() if size < SMALL * sum(sizes.values())}
    planes = {name: max(SMALL_PLANES, int(target)) if name in small else int(target) for name in sizes}
    large = [name for name in sizes if name not in small]
    for group in (large, [name for name in sizes if name in small]):
        while planes_in(sizes, planes) > capacity(target, sizes) and any(planes[name] > 1 for name in group):
            for name in reversed(group):
                if planes_in(sizes, planes) > capacity(target, sizes) and planes[name] > 1:
                    planes[name] -= 1
    return _raised(planes, sizes, target, [name for name in large if planes[name] == int(target)])


def by_chance(sizes: Sizes, target: float, seed: int) -> Planes:
    """One plane for every layer, then one more for a random layer among those where it fits, until it fits nowhere."""
    draw, planes, room = random.Random(seed), dict.fromkeys(sizes, 1), capacity(target, sizes)
    while fitting := [n for n in sizes if planes[n] < MOST and planes_in(sizes, planes) + sizes[n] <= room]:
        planes[draw.choice(fitting)] += 1
    return planes


def squared_errors(joint: JointLoss) -> dict[str, dict[int, float]]:
    """What rounding a layer to so many planes changes: the sum of its squares."""
    return {name: {k: float((joint.rounded(name, k) - weight).square().sum()) for k in range(1, MOST + 1)}
            for name, weight in joint.floats.items()}  # fmt: skip


def fisher_errors(joint: JointLoss) -> dict[str, dict[int, float]]:
    """The rise of the loss to second order, half the sum of squared error times empirical Fisher diagonal."""
    curvature = joint.squared_gradients()
    return {name: {k: 0.5 * float((curvature[name] * (joint.rounded(name, k) - weight).square()).sum())
                   for k in range(1, MOST + 1)} for name, weight in joint.floats.items()}  # fmt: skip


def measured_rises(joint: JointLoss) -> dict[str, dict[int, float]]:
    """How much the loss rises when one layer alone is rounded."""
    base = joint({})
    return {name: {k: joint({name: k}) - base for k in range(1, MOST + 1)} for name in joint.sizes}


def by_pairs(joint: JointLoss, target: float, seed: int) -> Planes:
    """Planes with the least sum of the rises of single layers and of what pairs add (CLADO, arXiv 2307.05657).

    Pairs are measured at up to 3 planes each, on a quarter of the images, and taken to add nothing beyond that. The sum
    is made small by local search, from the best choice without pairs.
    """
    single, room = measured_rises(joint), capacity(target, joint.sizes)
    joint.batches = joint.batches[:1]
    base, rises = joint({}), {(n, k): joint({n: k}) for n in joint.sizes for k in FEW}
    added = {(a, i, b, j): joint({a: i, b: j}) - rises[a, i] - rises[b, j] + base
             for a, b in combinations(joint.sizes, 2) for i, j in product(FEW, FEW)}  # fmt: skip

    def predicted(planes: Planes) -> float:
        pairs = sum(added.get((a, planes[a], b, planes[b]), 0.0) for a, b in combinations(planes, 2))
        return sum(single[name][k] for name, k in planes.items()) + pairs

    return local_search(predicted, cheapest(single, joint.sizes, room), joint.sizes, room, PREDICTIONS, seed)


def by_local_search(joint: JointLoss, target: float, seed: int) -> Planes:
    """The best of 160 exchanges of planes between layers, by the loss with all layers rounded; from uniform."""
    return local_search(joint, uniform(joint.sizes, target), joint.sizes, capacity(target, joint.sizes), TRIALS, seed)


def _separable(measure: Callable[[JointLoss], Mapping[str, Mapping[int, float]]]) -> Callable[..., Planes]:
    return lambda joint, target, seed: cheapest(measure(joint), joint.sizes, capacity(target, joint.sizes))


RULES: Mapping[str, Callable[[Sizes, float, int], Planes]] = {
    "uniform": lambda sizes, target, seed: uniform(sizes, target),
    "hand": lambda sizes, target, seed: by_hand(sizes, target),
    "random": by_chance,
}
MEASURED: Mapping[str, Callable[[JointLoss, float, int], Planes]] = {
    "mse": _separable(squared_errors), "fisher": _separable(fisher_errors), "loss": _separable(measured_rises),
    "pairs": by_pairs, "local-search": by_local_search,
}  # fmt: skip
ALLOCATIONS = (*RULES, *MEASURED)
"""Names that :func:`allocate` takes."""


def allocate(
    name: str, model: nn.Module, data: Data, target: float, seed: int = 0, skip: Iterable[str] = ()
) -> Planes:  # fmt: skip
    """Planes by layer name, at most ``target`` bits a weight, 1 to 8 a layer.

    Args:
        name: one of ``ALLOCATIONS``. model: float and, unless the rule is by size alone, trained; it stays as it is.
        data: its training images are used. seed: of chance and of the images.

    Raises ValueError for an unknown name, a target that cannot be reached, and as :func:`csq_mini.convert` does.
    """
    if name not in ALLOCATIONS:
        raise ValueError(unknown("scheme", name, ALLOCATIONS))
    seed, joint = whole("seed", seed), JointLoss(model, data, whole("seed", seed), skip)
    target = check_target(target, joint.sizes, dict.fromkeys(joint.sizes, MOST), dict.fromkeys(joint.sizes, 1))
    with torch.random.fork_rng():  # what is trained next starts from the same random numbers, whatever the scheme
        planes = RULES[name](joint.sizes, target, seed) if name in RULES else MEASURED[name](joint, target, seed)
    check_scheme(planes, joint.sizes, target, MOST)
    return planes


def check_scheme(planes: Mapping[str, Any], sizes: Sizes, target: float, most: int) -> None:
    """ValueError unless there are planes for every layer, 1 to ``most``, and they fit the target."""
    for name in sorted(set(planes) ^ set(sizes)):
        raise ValueError(unknown("layer in the scheme", name, sizes) if name in planes else
                         f"the scheme has no planes for layer {name}: give it 1 to {most}")  # fmt: skip
    for name, k in planes.items():
        whole(f"planes of {name}", k, 1, most)
    bits = planes_in(sizes, planes) / sum(sizes.values())
    if planes_in(sizes, planes) > capacity(target, sizes):
        raise ValueError(f"the scheme has {bits:g} bits a weight, above the target {target:g}: give a larger target")


def read_scheme(path: str | Path) -> Planes:
    """Planes by layer from a JSON file: numbers by layer name, or a row of results, whose ``scheme`` is taken."""
    content = read_json(path)
    found = content.get("scheme", content) if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path} holds no scheme: it must be planes by layer name, or a row of results with a scheme")
    return {name: paper_bits(k) if isinstance(k, str) else whole(f"{path}: planes of {name}", k, 1, MOST)
            for name, k in found.items()}  # fmt: skip
