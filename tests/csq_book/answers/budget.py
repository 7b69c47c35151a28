"""Typical wrong answers to the puzzles of the chapter on the budget: at least three each."""

import torch


def walk(q, sizes, target, floor, reverse=False, stop=False, pay=True, sized=True, order=lambda x, b, i: (-x, -b, i)):
    kept, room = list(floor), target * sum(sizes)
    if pay:  # for the floors
        room -= sum(k * size for k, size in zip(floor, sizes))
    planes = []
    for layer, logits in enumerate(q.tolist()):
        ranked = sorted((*order(x, b, layer), layer) for b, x in enumerate(logits))
        planes += ranked[floor[layer] :]
    for *_, layer in sorted(planes, reverse=reverse):
        if (sizes[layer] if sized else sum(sizes) / len(sizes)) <= room + 1e-9:
            kept[layer] += 1
            room -= sizes[layer] if sized else sum(sizes) / len(sizes)
        elif stop:
            break
    return torch.tensor(kept)


WRONG = {
    "size_in_bits": [
        lambda q, sizes: (q > 0).double().sum(1).mean(),  # layers alike
        lambda q, sizes: (sizes @ (q > 0).long().sum(1)) / len(sizes),  # divided by the layers
        lambda q, sizes: (sizes @ (q >= 0).long().sum(1)) / sizes.sum(),  # zero taken as open
        lambda q, sizes: sizes @ (q > 0).long().sum(1),  # bits in all
        lambda q, sizes: (sizes.float() @ torch.sigmoid(q).sum(1)) / sizes.sum(),  # soft: R, not B
    ],
    "planes_kept": [
        lambda q, sizes, target, floor: walk(q, sizes, target, floor, stop=True),  # stops at the first misfit
        lambda q, sizes, target, floor: walk(q, sizes, target, floor, reverse=True),  # from the smallest logit
        lambda q, sizes, target, floor: walk(q, sizes, target, floor, pay=False),  # floors for nothing
        lambda q, sizes, target, floor: walk(q, sizes, target, [0] * len(sizes)),  # no floors
        lambda q, sizes, target, floor: walk(q, sizes, target, floor, sized=False),  # layers alike
        lambda q, sizes, target, floor: (q > 0).sum(1),  # what the search had open
        lambda *given: walk(*given, order=lambda x, b, i: (-x, b, i)),  # of equals, the lower plane first
        lambda *given: walk(*given, order=lambda x, b, i: (-x, -b, -i)),  # of equals, the later layer first
        lambda *given: walk(*given, order=lambda x, b, i: (-x, i, -b)),  # of equals, the layer before the plane
        lambda *given: walk(*given, order=lambda x, b, i: (-x, -i, b)),  # both the wrong way round
    ],
}
