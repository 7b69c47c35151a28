"""A data set as tensors on the training device, where its batches are augmented and prepared for the model.

There are no worker processes, and nothing moves between devices, except batches of a data set too large for one.
Images are ``[batch, channels, height, width]`` uint8, in channels_last memory where that is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ..check import unknown, whole
from .transforms import CropFlip
from .transforms import Normalise as Normalise  # found here too

Split = tuple[Tensor, Tensor]
Augment = Callable[[Tensor, torch.Generator], Tensor]
Prepare = Callable[[Tensor], Tensor]
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Data:
    """A data set ready for :func:`csq_mini.fit`.

    Attributes:
        name: shown in run folders and results.
        train, valid, test: inputs ``[images, ...]`` and targets ``[images, ...]``, as stored: to learn from, to watch
            and choose by, and to judge by, once. Each a pair of tensors or NumPy arrays, or a map-style Dataset of
            such pairs, which is read whole. Attributes are tensors.
        augment: changes a whole stored batch for training, given a CPU generator to draw from, so that the numbers are
            the same on every device; None for nothing. Processes that train together each augment the whole batch and
            keep their share; ``CropFlip`` changes that share alone.
        prepare: turns stored images into what the model sees, each by itself; None if that is the same.
        classes: number of classes; None if it is unknown or targets are not classes.
        streamed: whether the splits are too large for the device: they stay where they are, and each batch is moved.
        device: where batches go; None for where the splits lie. :meth:`to` sets it.

    Raises:
        ValueError: for an empty split, inputs without targets, unequal shapes of inputs, a target that is no class, or
            an argument of another kind.
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
        for key in ("augment", "prepare"):
            if getattr(self, key) is not None and not callable(getattr(self, key)):
                raise ValueError(f"{key} must be a function or None, got {getattr(self, key)!r}")
        if self.classes is not None:
            whole("classes", self.classes, 1)
        for split in SPLITS:
            object.__setattr__(self, split, _pair(f"{self.name}: {split}", getattr(self, split)))
        for split in SPLITS:
            x, y = getattr(self, split)
            if len(x) != len(y) or len(x) == 0:
                sizes = f"{len(x)} inputs and {len(y)} targets"
                raise ValueError(f"{self.name}: {split} has {sizes}; give as many of both, at least one")
            if x.shape[1:] != self.train[0].shape[1:]:
                shapes = f"{list(x.shape[1:])}, but train of shape {list(self.train[0].shape[1:])}"
                raise ValueError(f"{self.name}: {split} has inputs of shape {shapes}; give all splits one shape")
            if self.classes is not None and (y.is_floating_point() or not 0 <= y.min() <= y.max() < self.classes):
                found = f"targets {y.min()} to {y.max()}, but classes={self.classes}"
                raise ValueError(f"{self.name}: {split} has {found}; targets are whole and count from 0 to classes - 1")

    def to(self, device: torch.device | str) -> Data:
        """The same data with its batches, and unless it is streamed its splits, on another device."""
        place = usable(device)
        if self.streamed:
            return replace(self, device=place)
        train, valid, test = ((x.to(place), y.to(place)) for x, y in (self.train, self.valid, self.test))
        return replace(self, train=train, valid=valid, test=test, device=place)

    def batches(self, split: str, size: int, augment_seed: int | None = None) -> Iterator[Split]:
        """One pass through a split in order; the last batch may be smaller.

        Args:
            split: "train", "valid" or "test".
            size: images a batch, at least 1.
            augment_seed: augments the images as training does; None shows them as they are.

        Yields:
            Prepared inputs ``[size, ...]`` and targets ``[size, ...]`` on the device.
        """
        if split not in SPLITS:
            raise ValueError(unknown("split", split, SPLITS))
        x, y = getattr(self, split)
        return self._batches(x.split(whole("batch size", size, 1)), y.split(size), augment_seed)

    def _batches(self, xs: Iterable[Tensor], ys: Iterable[Tensor], augment_seed: int | None) -> Iterator[Split]:
        for number, (x, y) in enumerate(zip(xs, ys)):
            x = self._placed(x)
            if self.augment and augment_seed is not None:
                x = self.augment(x, _generator(augment_seed, 2, number))
            yield self._prepared(x), self._placed(y)

    def training_batch(self, size: int, seed: int, step: int, share: slice = slice(None)) -> Split:
        """Batch number ``step`` of an endless training: each epoch in a new order, without its remainder.

        The order depends on (seed, epoch), the augmentation on (seed, step), so a resumed run sees the same batches.

        Args:
            size: images a batch, at least 1; all of them if there are fewer.
            seed, step: of the run, at least 0.
            share: the part of the batch to return, equal to the bit to that part of the whole one.

        Returns:
            Augmented and prepared inputs ``[size, ...]`` and targets ``[size, ...]`` on the device.
        """
        x, y = self.train
        per_epoch = max(len(x) // whole("batch size", size, 1), 1)
        epoch, index = divmod(whole("step", step), per_epoch)
        chosen = _order(len(x), seed, epoch, x.device)[index * size : (index + 1) * size]
        images = self._augmented(chosen, share, _generator(seed, 1, step))
        return self._prepared(images), self._placed(y[chosen[share].to(y.device)])

    def _augmented(self, chosen: Tensor, share: slice, generator: torch.Generator) -> Tensor:
        """The share of a batch that holds the training images ``chosen``."""
        x = self.train[0]
        if self.augment and not isinstance(self.augment, CropFlip):
            return self.augment(self._placed(x[chosen]), generator)[share]
        images = self._placed(x[chosen[share]])
        if self.augment is None:
            return images
        drawn = self.augment.draw(chosen.shape + x.shape[1:], generator)
        return self.augment.apply(images, drawn[share])

    def _placed(self, t: Tensor) -> Tensor:
        return t if self.device is None else t.to(self.device)

    def _prepared(self, x: Tensor) -> Tensor:
        return self.prepare(x) if self.prepare else x


def check_data(data: object) -> None:
    """ValueError unless it is a :class:`Data`."""
    if not isinstance(data, Data):
        raise ValueError(f"data must be a csq.data.Data, got {type(data).__name__}: csq.data.Data(name, train, valid, "
                         "test) makes one, from a pair (inputs, targets) or a Dataset for each split")  # fmt: skip


def usable(device: torch.device | str) -> torch.device:
    """A device, or a ValueError if torch or this machine has no such thing."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, TypeError, AssertionError) as error:
        why = str(error).partition(". ")[0]
        raise ValueError(f"device {device!r} cannot be used here: take 'cpu', 'cuda' or 'cuda:0' ({why})") from error
    return place


def _pair(where: str, split: Any) -> Split:
    """A split as two tensors."""
    try:
        if isinstance(split, Dataset):
            split = default_collate([split[i] for i in range(len(split))])  # type: ignore[arg-type]
        x, y = (torch.as_tensor(part) for part in split)
        if x.ndim and y.ndim:
            return x, y
        problem = "inputs or targets are one number"
    except (TypeError, ValueError, RuntimeError, LookupError) as error:
        problem = str(error)
    raise ValueError(f"{where} must be inputs and targets, a pair of tensors or arrays or a Dataset of such pairs, got "
                     f"{type(split).__name__} (for a DataLoader, give its dataset): {problem}")  # fmt: skip


@lru_cache(maxsize=2)  # drawn once an epoch, not each step
def _order(count: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    return torch.randperm(count, generator=_generator(seed, 0, epoch)).to(device)


def _generator(*key: int) -> torch.Generator:
    mixed = 0
    for part in key:  # an injective mix of small integers, spread by a large odd factor
        mixed = (mixed * 0x9E3779B97F4A7C15 + whole("a seed", part) + 1) % 2**63
    return torch.Generator().manual_seed(mixed)


def stratified_order(targets: Tensor, seed: int = 0) -> Tensor:
    """A random order of ``targets`` ``[images]`` in which any stretch of images holds the classes in proportion."""
    # NumPy promises that RandomState draws the same numbers in every version.
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(targets)))
    order = order[targets[order].argsort(stable=True)]  # class by class, random within
    counts = targets.bincount()
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[targets[order]]
    share = (rank + 0.5) / counts[targets[order]]  # how far through its class an image comes
    return order[share.argsort(stable=True)]
