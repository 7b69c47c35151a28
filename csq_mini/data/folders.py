"""Arrays of decoded images, mapped into memory: for sets as large as ImageNet.

``data_scripts/image_folder.py`` writes them (see ``decode.py``); here they are checked and read.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import torch

from ..check import whole
from . import store
from .dataset import Data, Split
from .images import cut
from .transforms import CropFlip, Normalise

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation, by channel


def image_folder(
    root: str | Path | None = None, name: str = "imagefolder", side: int = 256, crop: int = 224,
    valid: int | None = None, limit: int | None = None, resident_gb: float = 40.0,
) -> Data:  # fmt: skip
    """Images that ``data_scripts/image_folder.py`` decoded, such as ImageNet's.

    Training sees a random crop, flipped at random; judging sees the centre crop. Images for validation come from
    ``train``, stratified and the same every time; ``val`` is the test set. ImageNet's training images at 256 pixels
    take 252 GB on disk, and only what the operating system caches of them takes memory.

    Args:
        root: the data root, holding the folder ``<name>-<side>``; None is ``CSQ_DATA``, else ``data``.
        name, side: as given to the script.
        crop: pixels a side that the model sees.
        valid: training images held out for validation; None is a twentieth, at most 10 000.
        limit: for trials, as in :func:`csq_mini.data.cifar10`.
        resident_gb: what the device may hold, in 10^9 bytes: a larger set is streamed.

    Returns:
        Data with stored inputs ``[images, 3, side, side]`` uint8 and targets ``[images]`` int64; batches are
        ``[batch, 3, crop, crop]`` float32, normalised by ImageNet's mean and deviation.

    Raises:
        FileNotFoundError, ValueError: if the arrays are missing, cut or do not fit each other (which one, what to
            do), or an argument is out of range.

    Source: He et al. (arXiv 1512.03385), section 3.4, but with one scale and one crop where they use several.
    """
    crop = whole("crop", crop, 1, side, hint=f": the images have {side} pixels a side")
    (x, y), (test_x, test_y), classes = _arrays(store.root(root), name, side)
    held_out = max(1, min(10_000, len(y) // 20)) if valid is None else valid
    watched, learned, judged = cut(len(y), len(test_y), held_out, limit)
    return Data(
        f"{name}-{side}" if limit is None else f"{name}-{side}[{limit}]",
        train=(x[learned], y[learned]),
        valid=(x[watched], y[watched]),
        test=(test_x[judged], test_y[judged]),
        augment=CropFlip(crop), prepare=Normalise(*IMAGENET, crop), classes=classes,
        streamed=x.nbytes + test_x.nbytes > resident_gb * 1e9,
    )  # fmt: skip


def _arrays(root: Path, name: str, side: int) -> tuple[Split, Split, int]:
    """Training and test images, and the number of classes; an error says what is wrong with the files."""
    folder = root / f"{name}-{side}"
    found = store.folder_problems(folder, side)
    if found:
        remedy = f"{store.fetch_command('image_folder', root)} --name {name} --side {side}"
        raise store.complaint(folder.name, root, found, 1 + len(store.ARRAYS), remedy)
    train, test = (_mapped(folder, part) for part in store.PARTS)
    return train, test, len(json.loads((folder / "classes.json").read_text()))


def _mapped(folder: Path, part: str) -> Split:
    images = np.load(folder / f"{part}_images.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the memory is read-only: nobody writes to it
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
    return x, torch.from_numpy(np.load(folder / f"{part}_labels.npy"))
