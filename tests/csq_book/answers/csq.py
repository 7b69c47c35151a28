"""Typical wrong answers to the puzzles of the chapter on CSQ as a whole: at least three each."""

import torch


def worth(p):
    return 2 ** torch.arange(len(p)).view(-1, 1)


def codes_of(weight, step):
    return (weight / torch.tensor(step)).round()


WRONG = {
    "hard_codes": [
        lambda p, n, q: (worth(p) * ((p >= 0).long() - (n >= 0).long()) * (q >= 0).view(-1, 1)).sum(0),  # 0 opens
        lambda p, n, q: (worth(p) * ((p > 0).long() - (n > 0).long())).sum(0),  # without the masks
        lambda p, n, q: (worth(p).flip(0) * ((p > 0).long() - (n > 0).long()) * (q > 0).view(-1, 1)).sum(0),  # reversed
        lambda p, n, q: (worth(p) * ((p > n) & (q > 0).view(-1, 1))).sum(0),  # the larger logit wins
        lambda p, n, q: (((p > 0).long() - (n > 0).long()) * (q > 0).view(-1, 1)).sum(0),  # bits are counted
    ],
    "is_exact": [
        lambda weight, step, planes: torch.allclose(weight, codes_of(weight, step) * step),  # nearly
        lambda weight, step, planes: torch.equal(weight, codes_of(weight, step) * torch.tensor(step)),  # any integer
        lambda weight, step, planes: bool((weight % step == 0).all()),  # a remainder, which rounding leaves
        lambda weight, step, planes: bool((weight / step == codes_of(weight, step)).all()),  # a quotient is rounded too
        lambda weight, step, planes: bool((codes_of(weight, step).abs() < 2**planes).all()),  # the range alone
    ],
}
