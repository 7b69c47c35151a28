"""A data set as tensors on the training device, where its batches are augmented and prepared for the model.

There are no worker processes, and nothing moves between devices, except batches of a data set too large for one.
Images are ``[batch, channels, height, width]`` uint8, in channels_last memory where that is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..check import unknown, whole

Split = tuple[Tensor, Tensor]
Augment = Callable[[Tensor, torch.Generator], Tensor]
Prepare = Callable[[Tensor], Tensor]
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class CropFlip:
    """A random square crop of the zero-padded bytes, flipped horizontally with probability 1/2.

    Source: He et al. (arXiv 1512.03385), section 4.2.
    """

    size: int  # height and width of the crop, in pixels
    pad: int = 0  # zeros added on each side, in pixels

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Crop and flip each image of the batch at random, drawing from a CPU generator."""
        return self.apply(x, self.draw(x.shape, generator))

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Top, left and flip (0 or 1) for each image of a batch of this shape: ``[batch, 3]`` int64 on the CPU."""
        places = [side + 2 * self.pad - self.size + 1 for side in shape[2:]]
        top, left = (torch.randint(count, shape[:1], generator=generator) for count in places)
        flip = torch.rand(shape[:1], generator=generator) < 0.5
        return torch.stack([top, left, flip.long()], dim=1)

    def apply(self, x: Tensor, drawn: Tensor) -> Tensor:
        """The images cropped and flipped as was drawn for each of them."""
        batch, channels = x.shape[:2]
        height, width = (side + 2 * self.pad for side in x.shape[2:])
        top, left, flip = drawn.to(x.device).view(batch, 3, 1, 1).unbind(1)  # each [batch, 1, 1]
        image, step = torch.arange(batch, device=x.device)[:, None, None], torch.arange(self.size, device=x.device)
        rows, columns = top + step[:, None], left + torch.where(flip > 0, self.size - 1 - step, step)
        pixels = F.pad(x.permute(0, 2, 3, 1), (0, 0, *[self.pad] * 4)).reshape(-1, channels)
        # a gather of whole pixels, which lie together in channels_last: each is one short run of bytes
        cropped = pixels.index_select(0, ((image * height + rows) * width + columns).flatten())
        return cropped.view(batch, self.size, self.size, channels).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Normalise:
    """Bytes 0..255 become (byte / 255 - mean) / std, float32."""

    mean: tuple[float, ...]  # one number a channel
    std: tuple[float, ...]
    crop: int | None = None  # take the centre square of this many pixels first; None takes the whole image

    def __call__(self, x: Tensor) -> Tensor:
        """The batch as the model sees it."""
        if self.crop is not None:
            top, left = (round((side - self.crop) / 2) for side in x.shape[2:])
            x = x[:, :, top : top + self.crop, left : left + self.crop]
        mean, std = _per_channel(self.mean, x.device), _per_channel(self.std, x.device)
        return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=16)  # copied to each device once, not with every batch
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return 255 * torch.tensor(values, device=device).view(-1, 1, 1)


@dataclass(frozen=True)
class Data:
    """A data set ready for :func:`csq_mini.fit`.

    Attributes:
        name: shown in run folders and results.
        train, valid, test: inputs ``[images, ...]`` and targets ``[images, ...]``, as stored: to learn from, to watch
            and choose by, and to judge by, once.
        augment: changes a whole stored batch for training, given a CPU generator to draw from, so that the numbers are
            the same on every device; None for nothing. Processes that train together each augment the whole batch and
            keep their share; ``CropFlip`` changes that share alone.
        prepare: turns stored images into what the model sees, each by itself; None if that is the same.
        classes: number of classes; None if it is unknown or targets are not classes.
        streamed: whether the splits are too large for the device: they stay where they are, and each batch is moved.
        device: where batches go; None for where the splits lie. :meth:`to` sets it.

    Raises:
        ValueError: for an empty split, inputs without targets, unequal shapes of inputs, or a target that is no class.
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
                raise ValueError(f"{self.name}: {split} has {sizes}; give as many of both, at least one")
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
        epoch, index = divmod(step, per_epoch)
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


@lru_cache(maxsize=2)  # drawn once an epoch, not each step
def _order(count: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    return torch.randperm(count, generator=_generator(seed, 0, epoch)).to(device)


def _generator(*key: int) -> torch.Generator:
    mixed = 0
    for part in key:  # an injective mix of small integers, spread by a large odd factor
        mixed = (mixed * 0x9E3779B97F4A7C15 + part + 1) % 2**63
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
