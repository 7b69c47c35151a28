"""Data sets as tensors that lie on the training device.

A :class:`Data` holds three splits: training, validation (to choose by) and test (to judge by, once).
The embedded one is scikit-learn's handwritten digits, which needs no download.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .names import unknown

Split = tuple[Tensor, Tensor]
Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Data:
    """A data set ready for :func:`csq_mini.fit`.

    Attributes:
        name: as it stands in run folders and results.
        train, valid, test: pairs of inputs ``[images, ...]`` and targets ``[images, ...]``.
        augment: changes a training batch, drawing from the generator it is given; None for nothing.

    Raises:
        ValueError: if a split is empty, or has unequal numbers of inputs and targets.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    augment: Augment | None = None

    def __post_init__(self) -> None:
        for split in ("train", "valid", "test"):
            x, y = getattr(self, split)
            if len(x) != len(y) or len(x) == 0:
                sizes = f"{len(x)} inputs and {len(y)} targets"
                raise ValueError(f"{self.name}: {split} has {sizes}; give as many of both, one at least")

    def to(self, device: torch.device | str) -> Data:
        """The same data on another device."""
        train, valid, test = ((x.to(device), y.to(device)) for x, y in (self.train, self.valid, self.test))
        return Data(self.name, train, valid, test, self.augment)


def batches(split: Split, size: int) -> Iterator[Split]:
    """The split in order, in batches of ``size``, the last one smaller if need be."""
    yield from zip(split[0].split(size), split[1].split(size))


def training_batch(data: Data, size: int, seed: int, step: int) -> Split:
    """Batch number ``step`` of an endless training: each epoch in a new order, remainder left out.

    A pure function of its arguments, so that a resumed run sees the same batches: the order comes
    from (seed, epoch), the augmentation from (seed, step).
    """
    x, y = data.train
    per_epoch = max(len(x) // size, 1)
    epoch, index = divmod(step, per_epoch)
    order = torch.randperm(len(x), generator=_generator(seed, 0, epoch))
    chosen = order[index * size : (index + 1) * size].to(x.device)
    x, y = x[chosen], y[chosen]
    return (data.augment(x, _generator(seed, 1, step)) if data.augment else x), y


def _generator(*key: int) -> torch.Generator:
    mixed = 0
    for part in key:  # an injective mix of small integers, spread by a large odd factor
        mixed = (mixed * 0x9E3779B97F4A7C15 + part + 1) % 2**63
    return torch.Generator().manual_seed(mixed)


def digits(fold: int = 0, folds: int = 5, seed: int = 0) -> Data:
    """scikit-learn's 1 797 handwritten digits, 8x8 pixels, in one documented split.

    Pixels 0..16 become x / 8 - 1, in [-1, 1]: nothing is estimated from the images. The images are
    cut into ``folds`` stratified parts; part ``fold`` is the test set, and of the rest every tenth
    image (stratified again) is for validation. Over all folds each image is tested once.

    Args:
        fold: which part to test on, 0 to folds - 1.
        folds: number of parts, 2 to 100.
        seed: of the split, not of the training.

    Returns:
        Data with inputs ``[images, 1, 8, 8]`` float32 and targets ``[images]`` int64.

    Raises:
        ValueError: if ``fold`` or ``folds`` is out of range.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository (1998).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import StratifiedKFold, train_test_split

    if not 2 <= folds <= 100 or not 0 <= fold < folds:
        raise ValueError(f"fold must lie in 0..folds-1 and folds in 2..100, got fold {fold!r} of {folds!r}")
    raw = load_digits()
    x = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    y = torch.tensor(raw.target)
    rest, test = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y))[fold]
    train, valid = train_test_split(rest, test_size=0.1, random_state=seed, stratify=y[rest])
    return Data("digits", (x[train], y[train]), (x[valid], y[valid]), (x[test], y[test]))


DATA: dict[str, Callable[..., Data]] = {"digits": digits}


def get(name: str) -> Callable[..., Data]:
    """The data set called ``name`` in the command line, as the function that loads it.

    Raises:
        ValueError: if there is none, with near names.
    """
    if name not in DATA:
        raise ValueError(unknown("data set", name, DATA))
    return DATA[name]
