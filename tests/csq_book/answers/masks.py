"""Typical wrong answers to the puzzles of the chapter on choosing bits: at least three each."""

import torch

PLACE = 2.0 ** torch.arange(8)


def soft_bits(p, n, beta):
    return torch.sigmoid(beta * p) - torch.sigmoid(beta * n)


def slope(q, beta):
    return beta * torch.sigmoid(beta * q) * (1 - torch.sigmoid(beta * q))


WRONG = {
    "openings": [
        lambda q: ((q[1:] <= 0) & (q[:-1] > 0)).sum(0),  # closings
        lambda q: (q[1:] > 0).ne(q[:-1] > 0).sum(0),  # both
        lambda q: ((q[1:] >= 0) & (q[:-1] < 0)).sum(0),  # zero taken as open
        lambda q: ((q[1:] > 0) & (q[:-1] < 0)).sum(0),  # a stop at zero missed
        lambda q: (q > 0).sum(0),  # open steps
        lambda q: ((q[1:] > 0) & (q[:-1] <= 0)).sum(1),  # a step each, not a plane
    ],
    "mask_gradient": [
        lambda grad, p, n, q, beta: PLACE[: len(q)] * slope(q, beta) / beta * (soft_bits(p, n, beta) @ grad),
        lambda grad, p, n, q, beta: slope(q, beta) * (soft_bits(p, n, beta) @ grad),  # without the place value
        lambda grad, p, n, q, beta: PLACE[: len(q)] * torch.sigmoid(beta * q) * (soft_bits(p, n, beta) @ grad),
        lambda grad, p, n, q, beta: PLACE[: len(q)] * slope(q, beta) * (torch.sigmoid(beta * p) @ grad),  # without n
        lambda grad, p, n, q, beta: PLACE[: len(q)].flip(0) * slope(q, beta) * (soft_bits(p, n, beta) @ grad),
        lambda grad, p, n, q, beta: PLACE[: len(q)] * slope(q, beta) * ((p - n) @ grad),  # logits, not gates
    ],
}
