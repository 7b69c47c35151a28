"""A data set as tensors on the training device: three splits, and batches of them.

Images are stored as they come from the file, often as bytes; each batch is augmented and turned into
what the model sees where it lies. There are no worker processes: nothing is copied between devices
but, for a data set too large for one, the batch itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..check import unknown

Split = tuple[Tensor, Tensor]
Augment = Callable[[Tensor, torch.Generator], Tensor]
Prepare = Callable[[Tensor], Tensor]
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Data:
    """A data set ready for :func:`csq_mini.fit`.

    Attributes:
        name: as it stands in run folders and results.
        train, valid, test: pairs of inputs ``[images, ...]`` and targets ``[images, ...]``, as
            stored: to learn from, to watch and choose by, and to judge by, once.
        augment: changes a stored training batch, drawing from the CPU generator it is given, so that
            the numbers are the same on every device; None for nothing.
        prepare: turns a stored batch into what the model sees; None if that is the same.
        classes: number of classes; None if it is unknown or targets are not classes.
        streamed: whether the splits are too large for the device and stay where they are (memory-
            mapped, say): each batch is moved, rather than the data set.
        device: where batches go; None for where the splits lie. Set by :meth:`to`.

    Raises:
        ValueError: if a split is empty, has unequal numbers of inputs and targets, inputs of another
            shape than the training split, or a target that is no class.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    augment: Augment | None = None
    prepare: Prepare | None = None
    classes: int | None = None
    streamed: bool = False
    device: torch.device | None = None

    def __post_init__(self) -> None:
        for split in SPLITS:
            x, y = getattr(self, split)
            if len(x) != len(y) or len(x) == 0:
                sizes = f"{len(x)} inputs and {len(y)} targets"
                raise ValueError(f"{self.name}: {split} has {sizes}; give as many of both, one at least")
            if x.shape[1:] != self.train[0].shape[1:]:
                shapes = f"{list(x.shape[1:])}, but train of shape {list(self.train[0].shape[1:])}"
                raise ValueError(f"{self.name}: {split} has inputs of shape {shapes}; give all splits one shape")
            if self.classes is not None and not 0 <= y.min() <= y.max() < self.classes:
                found = f"targets {y.min()} to {y.max()}, but classes={self.classes}"
                raise ValueError(f"{self.name}: {split} has {found}; targets count from 0 to classes - 1")

    def to(self, device: torch.device | str) -> Data:
        """The same data with its batches, and unless it is streamed its splits, on another device."""
        place = torch.device(device)
        if self.streamed:
            return replace(self, device=place)
        train, valid, test = ((x.to(place), y.to(place)) for x, y in (self.train, self.valid, self.test))
        return replace(self, train=train, valid=valid, test=test, device=place)

    def batches(self, split: str, size: int, augment_seed: int | None = None) -> Iterator[Split]:
        """One pass through a split in order, the last batch smaller if need be.

        Args:
            split: "train", "valid" or "test".
            size: images a batch, at least 1.
            augment_seed: augments the images as training does, each batch by a generator of this seed
                and its number; None shows them as they are.

        Yields:
            Prepared inputs ``[size, ...]`` and targets ``[size, ...]`` on the device.

        Raises:
            ValueError: for another split or size.
        """
        if split not in SPLITS:
            raise ValueError(unknown("split", split, SPLITS))
        x, y = getattr(self, split)
        parts = enumerate(zip(x.split(_checked(size)), y.split(size)))
        seed = augment_seed
        return (self._ready(*part, None if seed is None else _generator(seed, 2, i)) for i, part in parts)

    def training_batch(self, size: int, seed: int, step: int) -> Split:
        """Batch number ``step`` of an endless training: each epoch in a new order, remainder left out.

        A pure function of its arguments, so that a resumed run sees the same batches: the order
        comes from (seed, epoch), the augmentation from (seed, step).

        Args:
            size: images a batch, at least 1; if that is more than there are, the batch is all of them.
            seed: of the run, at least 0.
            step: from 0.

        Returns:
            Augmented and prepared inputs ``[size, ...]`` and targets ``[size, ...]`` on the device.

        Raises:
            ValueError: for another size.
        """
        x, y = self.train
        per_epoch = max(len(x) // _checked(size), 1)
        epoch, index = divmod(step, per_epoch)
        chosen = _order(len(x), seed, epoch, x.device)[index * size : (index + 1) * size]
        generator = _generator(seed, 1, step) if self.augment else None
        return self._ready(x[chosen], y[chosen.to(y.device)], generator)

    def _ready(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Split:
        if self.device is not None:
            x, y = x.to(self.device), y.to(self.device)
        if self.augment and generator is not None:
            x = self.augment(x, generator)
        return (self.prepare(x) if self.prepare else x), y


def _checked(size: int) -> int:
    if size < 1:
        raise ValueError(f"a batch needs at least 1 image, got a size of {size!r}")
    return size


@lru_cache(maxsize=2)  # drawn once an epoch, not each step
def _order(count: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    return torch.randperm(count, generator=_generator(seed, 0, epoch)).to(device)


def _generator(*key: int) -> torch.Generator:
    mixed = 0
    for part in key:  # an injective mix of small integers, spread by a large odd factor
        mixed = (mixed * 0x9E3779B97F4A7C15 + part + 1) % 2**63
    return torch.Generator().manual_seed(mixed)


def stratified_order(targets: Tensor, seed: int = 0) -> Tensor:
    """A random order of which every beginning holds the classes in their proportions.

    The first images serve for validation, the next ones for training: both are stratified, and so is
    whatever part of them a trial takes.

    Args:
        targets: ``[images]`` int64, from 0.
        seed: of the order. NumPy promises that RandomState draws the same numbers in every version.

    Returns:
        ``[images]`` int64, positions in ``targets``.
    """
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(targets)))
    order = order[targets[order].argsort(stable=True)]  # class by class, random within
    counts = targets.bincount()
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[targets[order]]
    share = (rank + 0.5) / counts[targets[order]]  # how far through its class an image comes
    return order[share.argsort(stable=True)]
