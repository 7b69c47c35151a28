"""Typical wrong answers to the puzzles of the chapter on relaxing a bit: at least three each."""

import math

import torch


def weight(p, n, scale, beta, gain=True, top=1, at_zero=False, flip=False):
    """The relaxed weight with one thing or another wrong about it."""
    steps, place = 2 ** len(p) - top, 2.0 ** torch.arange(len(p)).view(-1, 1)
    place = place.flip(0) if flip else place
    if beta == math.inf:
        digits, factor = ((p >= 0).float() - (n >= 0).float() if at_zero else (p > 0).float() - (n > 0).float()), 1
    else:
        digits, factor = torch.sigmoid(beta * p) - torch.sigmoid(beta * n), 1 / math.tanh(beta / 4) if gain else 1
    return scale / steps * factor * (place * digits).sum(0)


def plain(p, n, scale, beta):
    """No branch for the hard gate: infinity times zero is not a number."""
    digits = torch.sigmoid(beta * p) - torch.sigmoid(beta * n)
    return scale / (2 ** len(p) - 1) / math.tanh(beta / 4) * (2.0 ** torch.arange(len(p)) @ digits)


WRONG = {
    "logit_behind": [
        lambda opening, beta: torch.logit(opening),  # the temperature is forgotten
        lambda opening, beta: beta * torch.logit(opening),  # multiplied instead of divided
        lambda opening, beta: torch.log((1 - opening) / opening) / beta,  # upside down
        lambda opening, beta: torch.log(opening) / beta,  # the inverse of exp
        lambda opening, beta: (opening - 0.5) * 4 / beta,  # the tangent at the middle
    ],
    "soft_weight": [
        plain,
        lambda p, n, scale, beta: weight(p, n, scale, beta, gain=False),
        lambda p, n, scale, beta: weight(p, n, scale, beta, at_zero=True),  # 1[x >= 0]
        lambda p, n, scale, beta: weight(p, n, scale, beta, flip=True),  # most significant plane first
        lambda p, n, scale, beta: weight(p, n, scale, beta, top=0),  # 2^N steps
        lambda p, n, scale, beta: weight(p, torch.full_like(n, -math.inf), scale, beta),  # p alone
        lambda p, n, scale, beta: weight(p.detach(), n.detach(), scale, beta),  # no gradient
    ],
}
