"""Typical wrong answers to the puzzles of the chapter on precision: at least three each."""

import torch


def best(error):
    return lambda weights, bits, scales: scales[torch.stack([error(weights, bits, s) for s in scales]).argmin()]


def difference(weights, bits, scale, limit=None):
    top = 2**bits - 1
    step = scale / top
    return weights - step * (weights / step).round().clamp(-(limit or top), limit or top)


WRONG = {
    "staircase": [
        lambda x, step, limit: step * (x / step).floor().clamp(-limit, limit),  # the stair below
        lambda x, step, limit: step * (x / step).trunc().clamp(-limit, limit),  # the stair towards zero
        lambda x, step, limit: step * (x / step).round(),  # no end to the stairs
        lambda x, step, limit: (step * (x / step).round()).clamp(-limit, limit),  # the limit of codes for values
        lambda x, step, limit: (x / step).round().clamp(-limit, limit),  # the code
        lambda x, step, limit: step * (x / step).round().clamp(-limit - 1, limit),  # one code more, as an int8 has
    ],
    "best_scale": [
        best(lambda w, bits, s: difference(w, bits, s, 10**6).square().sum()),  # codes without an end
        best(lambda w, bits, s: difference(w, bits, s).abs().max()),  # the largest error
        best(lambda w, bits, s: (w - s / 2**bits * (w / s * 2**bits).round().clamp(1 - 2**bits, 2**bits - 1)).norm()),
        best(lambda w, bits, s: difference(w, bits, s).sum().abs()),  # errors that cancel
        lambda w, bits, s: torch.stack([difference(w, bits, x).square().sum() for x in s]).argmin(),  # its number
        lambda w, bits, s: s[(s - w.abs().max()).abs().argmin()],  # the largest weight
    ],
}
