"""Choosing planes for layers under a budget: exactly where costs add up, by local search where they do not.

Sizes are weights a layer, the capacity the most that weights times planes may come to.
"""

import math
import random
from collections.abc import Callable, Mapping

import numpy as np

from ...targets import planes_in

Planes = dict[str, int]  # by layer
Sizes = Mapping[str, int]


def cheapest(costs: Mapping[str, Mapping[int, float]], sizes: Sizes, room: int) -> Planes:
    """The planes of each layer with the least sum of costs[layer][planes] that fit, by dynamic programming.

    The capacity is counted in units of the sizes' common divisor, so it is exact. ValueError if nothing fits.
    """
    unit = math.gcd(*sizes.values())
    least, choices = np.zeros(room // unit + 1), []  # least cost of the layers so far within 0, 1, 2 ... units
    for name, options in costs.items():
        kinds = sorted(options)
        tried = np.full((len(kinds), len(least)), np.inf)
        for row, k in enumerate(kinds):
            need = k * sizes[name] // unit
            tried[row, need:] = least[: max(len(least) - need, 0)] + options[k]
        choices.append((name, kinds, tried.argmin(0)))
        least = tried.min(0)
    if not math.isfinite(least[-1]):
        raise ValueError(f"no choice of planes fits into {room} weights times planes: give a larger target")
    left, planes = len(least) - 1, {}
    for name, kinds, choice in reversed(choices):
        planes[name] = kinds[choice[left]]
        left -= planes[name] * sizes[name] // unit
    return {name: planes[name] for name in costs}


def local_search(
    cost: Callable[[Planes], float], start: Planes, sizes: Sizes, room: int, trials: int, seed: int, most: int = 8
) -> Planes:  # fmt: skip
    """Planes of a cost no higher than that of ``start``: random exchanges between layers, kept where they help.

    A trial gives one layer a plane or two, and takes planes from random others until all fit.
    """
    draw, best, least = random.Random(seed), dict(start), cost(start)
    for _ in range(trials):
        tried = _exchanged(best, sizes, room, draw, most)
        if tried != best and (value := cost(tried)) < least:
            best, least = tried, value
    return best


def _exchanged(planes: Planes, sizes: Sizes, room: int, draw: random.Random, most: int) -> Planes:
    """A scheme near this one that fits; the same one if chance found none."""
    gains = draw.choice(list(planes))
    tried = {**planes, gains: min(most, planes[gains] + draw.choice((1, 1, 2)))}
    while planes_in(sizes, tried) > room:
        givers = [name for name, k in tried.items() if k > 1 and name != gains]
        if not givers:
            return planes
        tried[draw.choice(givers)] -= 1
    return tried
