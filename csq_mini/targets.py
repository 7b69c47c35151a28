"""Which targets a budget can have, counted in whole weights and planes."""

import math
from collections.abc import Mapping
from fractions import Fraction
from numbers import Real


def check_target(
    target: float, weights: Mapping[str, int], planes: Mapping[str, int], floor: Mapping[str, int]
) -> float:  # fmt: skip
    """``target`` as a float; ValueError if layers of so many weights, planes and least planes cannot reach it."""
    value = float(target) if isinstance(target, Real) and not isinstance(target, bool) else math.nan
    low, high, total = planes_in(weights, floor), planes_in(weights, planes), max(sum(weights.values()), 1)
    if not math.isfinite(value) or not low <= capacity(value, weights) or value > high / total:
        raise ValueError(
            f"target {target!r} cannot be reached: with these floors and planes it must lie between "
            f"{math.ceil(1e4 * low / total) / 1e4:g} and {high / total:g} bits a weight"
        )
    return value


def planes_in(weights: Mapping[str, int], planes: Mapping[str, int]) -> int:
    """Weights times planes, summed over the layers."""
    return sum(weights[name] * k for name, k in planes.items())


def capacity(target: float, weights: Mapping[str, int]) -> int:
    """The most that they may come to."""
    # Through its decimal text: a target of 0.3 means 3/10, not the float just below it.
    return math.floor(Fraction(repr(target)) * sum(weights.values()))
