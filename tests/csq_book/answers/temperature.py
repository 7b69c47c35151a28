"""Typical wrong answers to the puzzles of the chapter on annealing: at least three each."""

import math

import torch

WRONG = {
    "progress_when": [
        lambda beta, start, end: (beta - start) / (end - start),  # of a linear schedule
        lambda beta, start, end: torch.log(beta) / math.log(end),  # right only for a start at 1
        lambda beta, start, end: torch.log(beta / start) / math.log(end),  # the start is forgotten below
        lambda beta, start, end: start * (end / start) ** beta,  # the schedule, not its inverse
        lambda beta, start, end: torch.log(beta / start),  # not divided
    ],
    "temperature_in_rounds": [
        lambda t, start, end, rounds: start * (end / start) ** (t * rounds % 1),  # back to the start at t = 1
        lambda t, start, end, rounds: start * (end / start) ** t,  # one round
        lambda t, start, end, rounds: start * (end / start) ** (t * rounds),  # never goes back
        lambda t, start, end, rounds: start + (end - start) * torch.where(t == 1, t, t * rounds % 1),  # linear
        lambda t, start, end, rounds: torch.where(t == 1, end, end ** (t * rounds % 1)),  # only for a start at 1
        lambda t, start, end, rounds: start * (end / start) ** (t * rounds - (t * rounds).ceil() + 1),  # borders
    ],
}
