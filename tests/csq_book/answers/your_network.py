"""Typical wrong answers to the puzzles of the chapter on a network of one's own: at least three each."""

import torch

WRONG = {
    "undecided_share": [
        lambda logits, beta: (logits.abs() < 0.05).double().mean(),  # of the logit, not of its gate
        lambda logits, beta: ((beta * logits).sigmoid() < 0.95).double().mean(),  # closed gates are counted
        lambda logits, beta: (logits.sigmoid() - 0.5).abs().lt(0.45).double().mean(),  # without the temperature
        lambda logits, beta: ((beta * logits).sigmoid() - 0.5).abs().lt(0.45).sum(),  # a number, not a share
    ],
    "in_training": [
        lambda groups, parameters: [  # the same numbers are not the same tensor
            any(torch.equal(p, other) for g in groups for other in g["params"]) for p in parameters
        ],
        lambda groups, parameters: [  # the same shape
            any(p.shape == other.shape for g in groups for other in g["params"]) for p in parameters
        ],
        lambda groups, parameters: [  # the first group alone
            any(p is other for g in groups[:1] for other in g["params"]) for p in parameters
        ],
        lambda groups, parameters: [p in g["params"] for g in groups for p in parameters],  # compares elementwise
    ],
}
