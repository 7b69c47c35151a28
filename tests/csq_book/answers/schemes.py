"""Typical wrong answers to the puzzles of the chapter on reading a scheme: at least three each."""

import torch


def _agreement(x, y):
    return (x[:, None] - x).sign() * (y[:, None] - y).sign()


def _buy(losses, sizes, room, worth, *, stop=False, start=None):
    """Spends the room on the layer whose next plane has the largest worth."""
    counts, left = [1] * len(sizes), room - sum(sizes) if start is None else start
    while True:
        offers = [
            (worth(losses, counts, sizes, i), -i)
            for i in range(len(sizes))
            if counts[i] + 1 < losses.shape[1] and (stop or sizes[i] <= left)
        ]
        best, i = max(offers, default=(0, 0))
        if best <= 0 or sizes[-i] > left:
            return counts
        counts[-i] += 1
        left -= sizes[-i]


def _gain(losses, counts, sizes, i):
    return float(losses[i, counts[i]] - losses[i, counts[i] + 1])


def _per_weight(losses, counts, sizes, i):
    return _gain(losses, counts, sizes, i) / sizes[i]


WRONG = {
    "order_agreement": [
        lambda x, y: _agreement(x, y).double().mean(),  # the pairs of a layer with itself are counted
        lambda x, y: _agreement(x, y).sum() / 2,  # the number of pairs is missing
        lambda x, y: (_agreement(x, y) > 0).sum() / (len(x) * (len(x) - 1)),  # pairs in the other order are forgotten
        lambda x, y: torch.corrcoef(torch.stack([x.double(), y.double()]))[0, 1],  # of the values, not of their order
        lambda x, y: _agreement(x, y).sum() / _agreement(x, y).abs().sum(),  # ties are left out
    ],
    "buy_planes": [
        lambda losses, sizes, room: _buy(losses, sizes, room, _gain),  # what a plane costs is forgotten
        lambda losses, sizes, room: _buy(losses, sizes, room, _per_weight, stop=True),  # stops at the first too large
        lambda losses, sizes, room: _buy(losses, sizes, room, _per_weight, start=room),  # the first planes are free
        lambda losses, sizes, room: _buy(losses, sizes, room, lambda *a: _per_weight(*a) + 9),  # buys what only harms
        lambda losses, sizes, room: _buy(  # the loss a layer still has, in place of what a plane takes off it
            losses, sizes, room, lambda losses, counts, sizes, i: float(losses[i, counts[i]]) / sizes[i]
        ),
    ],
}
