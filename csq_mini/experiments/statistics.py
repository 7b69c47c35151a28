"""Comparisons paired by seed: the mean difference of two methods, its spread, and a bootstrap interval."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..check import number, whole

RESAMPLES = 10_000


def summary(values: Mapping[Any, float]) -> dict[str, float | int]:
    """Number ``n``, ``mean`` and sample standard deviation ``sd`` (0 for a single one) of results by seed."""
    if not values:
        raise ValueError("there are no results to sum up: give at least one")
    results = np.array([number(f"result of {seed}", value, -math.inf) for seed, value in values.items()])
    return {"n": len(results), "mean": float(results.mean()), "sd": float(results.std(ddof=len(results) > 1))}


def paired(mine: Mapping[Any, float], other: Mapping[Any, float], level: float = 0.95) -> dict[str, float | int]:
    """How much better one method is than another, seed by seed.

    Args:
        mine, other: results, such as accuracies, by seed; seeds that only one of them has are left out.
        level: of the interval, 0 to 1.

    Returns:
        The :func:`summary` of the differences ``mine - other``, and ``low`` and ``high``: the percentile bootstrap
        interval of their mean, from 10 000 resamples that are the same every time. Over three seeds it is narrower
        than it should be; ``n`` says how many there were.

    Raises:
        ValueError: if no seed is in both, or level is out of range.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    level = number("level", level, 0, 1)
    seeds = [seed for seed in mine if seed in other]
    if not seeds:
        raise ValueError(f"no seed is in both: {[*mine]} and {[*other]}; run both methods with the same seeds")
    differences = {seed: mine[seed] - other[seed] for seed in seeds}
    low, high = bootstrap(list(differences.values()), level)
    return {**summary(differences), "low": low, "high": high}


def bootstrap(values: list[float], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of some values."""
    draws = np.random.default_rng(whole("seed", seed)).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.array(values)[draws].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
