"""Typical wrong answers to the puzzles of the chapter on bits: at least three each."""

import torch

WRONG = {
    "bits_of": [
        lambda codes, planes: (codes >> torch.arange(planes).view(-1, 1)) & 1,  # two's complement of negative codes
        lambda codes, planes: ((codes.abs() >> torch.arange(planes).view(-1, 1)) & 1).flip(0),  # most significant first
        lambda codes, planes: ((codes.abs() >> torch.arange(planes).view(-1, 1)) & 1).T,  # a row for each weight
        lambda codes, planes: codes.abs() >> torch.arange(planes).view(-1, 1),  # shifted, and not cut
    ],
    "keep_planes": [
        lambda codes, kept: codes & sum(2**b for b in kept),  # two's complement
        lambda codes, kept: codes.abs() & sum(2**b for b in kept),  # without the sign
        lambda codes, kept: codes.sign() * (codes.abs() & ~sum(2**b for b in kept)),  # the planes that go
        lambda codes, kept: codes.clamp(-sum(2**b for b in kept), sum(2**b for b in kept)),  # clamped
    ],
}
