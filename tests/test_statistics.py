"""Means, spreads and intervals over seeds."""

import math

import numpy as np
import pytest

from csq_mini.experiments.statistics import bootstrap, paired, summary


def test_a_summary_is_number_mean_and_sample_deviation():
    assert summary({0: 1.0, 1: 2.0, 2: 6.0}) == {"n": 3, "mean": 3.0, "sd": math.sqrt(7)}
    assert summary({0: 0.5}) == {"n": 1, "mean": 0.5, "sd": 0.0}


def test_pairs_are_by_seed_whatever_the_order_and_single_ones_are_left_out():
    got = paired({0: 0.9, 1: 0.8, 2: 0.7, 9: 0.1}, {2: 0.6, 1: 0.7, 0: 0.8, 7: 0.99})
    assert (got["n"], got["mean"]) == (3, pytest.approx(0.1)) and got["sd"] == pytest.approx(0, abs=1e-12)
    assert got["low"] == pytest.approx(0.1) == got["high"]


def test_an_interval_is_the_same_every_time_and_near_that_of_the_normal():
    values = np.random.default_rng(1).normal(2.0, 1.0, 200).tolist()
    low, high = bootstrap(values)
    assert bootstrap(values) == (low, high)
    half = 1.96 * np.std(values, ddof=1) / math.sqrt(200)  # what the normal gives; the bootstrap is within a tenth
    assert low == pytest.approx(np.mean(values) - half, abs=0.1 * half)
    assert high == pytest.approx(np.mean(values) + half, abs=0.1 * half)
    narrow = bootstrap(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high


@pytest.mark.parametrize("call, message", [
    (lambda: summary({}), "there are no results to sum up: give at least one"),
    (lambda: summary({3: math.nan}), "result of 3 must be a finite number"),
    (lambda: paired({0: 1.0}, {1: 1.0}), r"no seed is in both: \[0\] and \[1\]; run both methods with the same seeds"),
    (lambda: paired({0: 1.0}, {0: 1.0}, level=95), "level must be a finite number from 0 to 1, got 95"),
])  # fmt: skip
def test_what_cannot_be_compared_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
