"""Arrays of decoded images, mapped into memory: for sets as large as ImageNet.

``data_scripts/image_folder.py`` writes them (see ``decode.py``); here they are checked and read.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import store
from .dataset import Data, Split
from .images import cut
from .transforms import CropFlip, Normalise

PARTS = ("train", "val")


def image_folder(
    root: str | Path | None = None, name: str = "imagefolder", side: int = 256, crop: int = 224,
    valid: int | None = None, limit: int | None = None, resident_gb: float = 40.0,
) -> Data:  # fmt: skip
    """Images that ``data_scripts/image_folder.py`` decoded, such as ImageNet's.

    Training sees a random crop, flipped at random, of an image whose shorter side was resized to
    ``side``; judging sees the centre crop. Images held out for validation come from ``train``,
    stratified and the same every time; the folder ``val`` is the test set. ImageNet's 1.28 million
    training images at 256 pixels are 252 GB on disk; none of it is in memory but what the operating
    system keeps of it.

    Args:
        root: the data root, holding the folder ``<name>-<side>``; None is ``CSQ_DATA``, else ``data``.
        name, side: as given to the script.
        crop: pixels a side that the model sees.
        valid: training images held out for validation; None is a twentieth, 10 000 at most.
        limit: for trials, as in :func:`csq_mini.data.cifar10`.
        resident_gb: what the device may hold, in 10^9 bytes: a larger set is streamed.

    Returns:
        Data with stored inputs ``[images, 3, side, side]`` uint8 and targets ``[images]`` int64;
        batches are ``[batch, 3, crop, crop]`` float32, normalised by ImageNet's mean and deviation.

    Raises:
        FileNotFoundError, ValueError: if the arrays are missing, cut or do not fit each other (which
            one, what to do), or an argument is out of range.

    Source: He et al. (arXiv 1512.03385), section 3.4, but from one scale rather than many, and judged
    on one crop rather than ten.
    """
    if not 1 <= crop <= side:
        raise ValueError(f"crop must lie in 1..{side}, the side of the images, got {crop!r}")
    folder = store.root(root) / f"{name}-{side}"
    found = folder_problems(folder, side)
    if found:
        raise _complaint(folder, name, side, found)
    classes = len(json.loads((folder / "classes.json").read_text()))
    (x, y), (test_x, test_y) = (_mapped(folder, part) for part in PARTS)
    held_out = max(1, min(10_000, len(y) // 20)) if valid is None else valid
    watched, learned, judged = cut(len(y), len(test_y), held_out, limit)
    label = folder.name if limit is None else f"{folder.name}[{limit}]"
    streamed = x.nbytes + test_x.nbytes > resident_gb * 1e9
    normalise = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop)
    splits = (x[learned], y[learned]), (x[watched], y[watched]), (test_x[judged], test_y[judged])
    return Data(label, *splits, CropFlip(crop), normalise, classes, streamed)


def _mapped(folder: Path, part: str) -> Split:
    images = np.load(folder / f"{part}_images.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the memory cannot be written to: nobody does
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
    return x, torch.from_numpy(np.load(folder / f"{part}_labels.npy"))


def folder_problems(folder: Path, side: int) -> dict[str, str]:
    """File -> "missing" or what is wrong with it, judged by shapes and sizes: there are no checksums."""
    found: dict[str, str] = {}
    arrays: dict[str, Any] = {}
    for file in ["classes.json", *(f"{part}_{kind}.npy" for part in PARTS for kind in ("images", "labels"))]:
        path = folder / file
        try:
            arrays[file] = json.loads(path.read_text()) if path.suffix == ".json" else np.load(path, mmap_mode="r")
        except FileNotFoundError:
            found[file] = "missing"
        except (ValueError, OSError, EOFError):
            found[file] = "damaged"
    return found or _misfits(arrays, side)


def _misfits(arrays: dict[str, Any], side: int) -> dict[str, str]:
    found, classes = {}, len(arrays["classes.json"])
    for part in PARTS:
        images, labels = arrays[f"{part}_images.npy"], arrays[f"{part}_labels.npy"]
        if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3):
            found[f"{part}_images.npy"] = f"{list(images.shape)} {images.dtype}, not [images, {side}, {side}, 3] uint8"
        elif labels.shape != images.shape[:1]:
            found[f"{part}_labels.npy"] = f"of shape {list(labels.shape)} for {len(images)} images"
        elif len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            found[f"{part}_labels.npy"] = f"{labels.min()} to {labels.max()} for {classes} classes"
    return found


def _complaint(folder: Path, name: str, side: int, found: dict[str, str]) -> Exception:
    remedy = f"run: {store.command('image_folder', folder.parent)} --name {name} --side {side}"
    if not folder.exists():
        return FileNotFoundError(f"no folder {folder}; {remedy}")
    kind = FileNotFoundError if set(found.values()) == {"missing"} else ValueError
    return kind(f"{folder} is not whole: {store.named(found)}; {remedy}")
