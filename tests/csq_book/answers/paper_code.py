"""Typical wrong answers to the puzzles of the chapter on paper and code: at least three each."""

import torch


def _signs(positive, negative, places):
    sign = positive - negative
    return (2 ** torch.arange(len(sign))) @ sign, places @ sign.to(places.dtype)


def _step_of_the_first_plane(positive, negative, places):
    return _signs(positive, negative, places)[0], places[0]


def _mean_of_the_places(positive, negative, places):
    codes, _ = _signs(positive, negative, places)
    step = (places / 2 ** torch.arange(len(places))).mean() if codes.any() else 0.0
    return codes, step


def _mean_of_the_ratios(positive, negative, places):
    codes, weights = _signs(positive, negative, places)
    kept = codes != 0
    return codes, (weights[kept] / codes[kept]).mean() if kept.any() else 0.0


def _projected_the_other_way(positive, negative, places):
    codes, weights = _signs(positive, negative, places)
    return codes, (weights @ weights) / (codes * weights).sum() if codes.any() else 0.0


def _rounded_again(positive, negative, places):
    codes, weights = _signs(positive, negative, places)
    square = (codes * codes).sum()
    step = (codes * weights).sum() / square.clamp(min=1)
    return (weights / step).round() if square else codes, step


def _divides_by_zero(positive, negative, places):
    codes, weights = _signs(positive, negative, places)
    return codes, (codes * weights).sum() / (codes * codes).sum()


WRONG = {
    "off_grid": [
        lambda weights, step: weights / step - (weights / step).round(),  # signed
        lambda weights, step: weights / step % 1,  # the remainder
        lambda weights, step: (weights - step * (weights / step).round()).abs(),  # not in steps
        lambda weights, step: (weights - weights.round()).abs(),  # the grid of step 1
    ],
    "integers_from_places": [
        _step_of_the_first_plane,
        _mean_of_the_places,
        _mean_of_the_ratios,
        _projected_the_other_way,
        _rounded_again,
        _divides_by_zero,
    ],
}
