"""Typical wrong answers to the puzzles of the chapter on activations: at least three each."""

import torch

WRONG = {
    "quantized_relu": [
        lambda x, alpha, bits: (x.clamp(0, alpha) / (alpha / 2**bits)).round() * (alpha / 2**bits),  # a level too many
        lambda x, alpha, bits: (x.relu() / (alpha / (2**bits - 1))).round() * (alpha / (2**bits - 1)),  # no clip
        lambda x, alpha, bits: (x.clamp(0, alpha) / (alpha / (2**bits - 1))).floor() * (alpha / (2**bits - 1)),  # down
        lambda x, alpha, bits: (
            (x.clamp(max=alpha) / (alpha / (2**bits - 1))).round() * (alpha / (2**bits - 1))
        ),  # below 0
        lambda x, alpha, bits: (x.clamp(0, alpha) / (alpha / (2**bits - 1))).round(),  # codes, not activations
    ],
    "pact_gradients": [
        lambda x, alpha, grad: (grad * (x > 0), (grad * (x >= alpha)).sum()),  # what is cut speaks to x too
        lambda x, alpha, grad: (grad * ((x > 0) & (x < alpha)), (x >= alpha).sum()),  # counted, without the gradient
        lambda x, alpha, grad: (grad * ((x > 0) & (x < alpha)), (grad * (x > alpha)).sum()),  # the border is lost
        lambda x, alpha, grad: (grad * ((x > 0) & (x < alpha)), grad * (x >= alpha)),  # not summed
        lambda x, alpha, grad: (grad * ((x >= 0) & (x < alpha)), (grad * (x >= alpha)).sum()),  # zero lets it pass
        lambda x, alpha, grad: (grad * ((x > 0) & (x < alpha)), grad.sum()),  # all speak to the clip
        lambda x, alpha, grad: (torch.where((x > 0) & (x < alpha), 1.0, 0.0), (grad * (x >= alpha)).sum()),  # slopes
    ],
}
