"""Typical wrong answers to the puzzles of the chapter on the exact model: at least three each."""

import torch


def _in_order_of_appearance(codes):
    values = list(dict.fromkeys(codes.tolist()))
    return torch.tensor(values), torch.tensor([values.index(code) for code in codes.tolist()])


def _one_byte_only(payload, width, places):
    return (payload[places * width // 8] >> (places * width % 8)) & (2**width - 1)


def _not_cut(payload, width, places):
    longer = torch.cat([payload, payload.new_zeros(1)])
    first = places * width // 8
    return (longer[first] + 256 * longer[first + 1]) >> (places * width % 8)


def _no_byte_behind_the_last(payload, width, places):
    first = places * width // 8
    return ((payload[first] + 256 * payload[first + 1]) >> (places * width % 8)) & (2**width - 1)


def _highest_bit_first(payload, width, places):
    bits = (payload[:, None] >> torch.arange(7, -1, -1) & 1).flatten()
    fields = bits[places[:, None] * width + torch.arange(width)]
    return fields @ (2 ** torch.arange(width - 1, -1, -1))


WRONG = {
    "table_and_places": [
        _in_order_of_appearance,
        lambda codes: torch.unique(codes, return_counts=True),  # how often, not where
        lambda codes: torch.unique(codes, return_inverse=True)[::-1],  # the two the wrong way round
        lambda codes: (torch.unique(codes), codes - codes.min()),  # the span, not a table
        lambda codes: (torch.unique(codes), codes.argsort()),
    ],
    "read_fields": [
        _one_byte_only,
        _not_cut,
        _no_byte_behind_the_last,
        _highest_bit_first,
        lambda payload, width, places: payload[places] & (2**width - 1),  # a byte for each
    ],
}
