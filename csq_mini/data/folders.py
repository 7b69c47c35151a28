"""Folders of images in ImageNet's layout: decoded once into arrays, then mapped into memory.

``data_scripts/image_folder.py`` calls :func:`decode`; :func:`image_folder` checks and reads what it wrote.
"""

import json
import os
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..check import whole
from ..files import read_json
from . import store
from .dataset import CropFlip, Data, Normalise, Split, stratified_order
from .fetch import scratch_folder
from .images import cut

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation, by channel
BLOCK = 256  # images decoded ahead of the one being written


def image_folder(
    root: str | Path | None = None, name: str = "imagefolder", side: int = 256, crop: int = 224,
    valid: int | None = None, limit: int | None = None, resident_gb: float = 40.0,
) -> Data:  # fmt: skip
    """Images that ``data_scripts/image_folder.py`` decoded, such as ImageNet's.

    Training sees a random crop, flipped at random; judging sees the centre crop. ``val`` is the test set. ImageNet's
    training images at 256 pixels take 252 GB on disk, and in memory only what the operating system caches.

    Args:
        root: the data root, holding the folder ``<name>-<side>``; None is ``CSQ_DATA``, else ``data``.
        name, side: as given to the script.
        crop: pixels a side that the model sees.
        valid: images of ``train`` held out for validation, stratified; None is a twentieth, at most 10 000.
        limit: for trials, as in :func:`csq_mini.data.cifar10`.
        resident_gb: what the device may hold, in 10^9 bytes: a larger set is streamed.

    Returns:
        Data with stored inputs ``[images, 3, side, side]`` uint8 and targets ``[images]`` int64; batches are
        ``[batch, 3, crop, crop]`` float32, normalised by ImageNet's mean and deviation.

    Raises:
        FileNotFoundError, ValueError: for arrays that are missing, damaged or do not fit each other.

    Source: He et al. (arXiv 1512.03385), section 3.4, but with one scale and one crop where they use several.
    """
    crop = whole("crop", crop, 1, whole("side", side, 1), hint=f": the images have {side} pixels a side")
    here = store.root(root)
    folder = here / _folder(name, side)
    found = store.folder_problems(folder, side)
    if found:
        remedy = f"{store.fetch_command('image_folder', here)} --name {name} --side {side}"
        raise store.complaint(folder.name, here, found, 1 + len(store.ARRAYS), remedy)
    (x, y), (test_x, test_y) = (_mapped(folder, part) for part in store.PARTS)
    classes = len(read_json(folder / "classes.json"))
    held_out = max(1, min(10_000, len(y) // 20)) if valid is None else valid
    watched, learned, judged = cut(len(y), len(test_y), held_out, limit)
    return Data(
        folder.name if limit is None else f"{folder.name}[{limit}]",
        train=(x[learned], y[learned]),
        valid=(x[watched], y[watched]),
        test=(test_x[judged], test_y[judged]),
        augment=CropFlip(crop), prepare=Normalise(*IMAGENET, crop), classes=classes,
        streamed=x.nbytes + test_x.nbytes > resident_gb * 1e9,
    )  # fmt: skip


def _folder(name: str, side: int) -> str:
    if not name or Path(name).name != name:
        raise ValueError(f"name must be a plain name for a folder, got {name!r}")
    return f"{name}-{side}"


def _mapped(folder: Path, part: str) -> Split:
    images = np.load(folder / f"{part}_images.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the memory is read-only: nobody writes to it
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
    return x, torch.from_numpy(np.load(folder / f"{part}_labels.npy"))


def decode(
    source: str | Path, root: str | Path | None = None, name: str = "imagefolder", side: int = 256,
    progress: bool = True,
) -> str:  # fmt: skip
    """Decode ``source``/train/<class>/* and ``source``/val/<class>/* into ``<root>/<name>-<side>``; says what it did.

    The shorter side is resized to ``side`` pixels, the centre square kept, and images stored in stratified order.
    ``root`` None is ``CSQ_DATA``, else ``data``.

    Raises:
        FileNotFoundError, ValueError: for a missing folder, a class without images, or an image that cannot be read.
        OSError: if the disk is too full. After an error what was there before is unchanged.
    """
    side = whole("side", side, 1)
    here = store.root(root)
    target = here / _folder(name, side)
    if target.exists() and not store.folder_problems(target, side):
        return f"{target} is there already and whole; to decode again delete it first"
    files, classes = _files(Path(source).expanduser())
    _check_space(here, sum(len(paths) for paths, _ in files.values()) * side * side * 3)
    with scratch_folder(here, name) as scratch:
        ready = scratch / "ready"
        ready.mkdir()
        (ready / "classes.json").write_text(json.dumps(classes))
        for part, (paths, labels) in files.items():
            np.save(ready / f"{part}_labels.npy", labels)
            with open(ready / f"{part}_images.npy", "wb") as file:
                _write_images(file, paths, side, part, progress)
        if target.exists():
            target.rename(scratch / "old")
        ready.rename(target)
    counts = ", ".join(f"{len(labels)} {part} images" for part, (_, labels) in files.items())
    return f"{counts}, {len(classes)} classes: {target}"


def _files(source: Path) -> tuple[dict[str, tuple[list[str], np.ndarray]], list[str]]:
    """Paths and labels of each part, in stratified order, and the names of the classes."""
    from torchvision.datasets.folder import find_classes

    for part in store.PARTS:
        if not (source / part).is_dir():
            raise FileNotFoundError(f"no folder {source / part}: {source} must hold train/<class>/ and val/<class>/")
    classes, numbers = find_classes(source / "train")
    unknown = sorted({p.name for p in (source / "val").iterdir() if p.is_dir()} - set(classes))
    if unknown:
        raise FileNotFoundError(f"{source / 'val'} has classes that {source / 'train'} lacks: {', '.join(unknown)}")
    return {part: _paths(source / part, numbers) for part in store.PARTS}, classes


def _paths(folder: Path, numbers: dict[str, int]) -> tuple[list[str], np.ndarray]:
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    pairs = make_dataset(folder, numbers, extensions=IMG_EXTENSIONS, allow_empty=True)
    labels = torch.tensor([label for _, label in pairs], dtype=torch.int64)
    found = set(labels.tolist())
    empty = [name for name, number in numbers.items() if number not in found]
    if empty:
        raise FileNotFoundError(f"no image of the classes {', '.join(empty)} in {folder}")
    order = stratified_order(labels)
    return [pairs[i][0] for i in order.tolist()], labels[order].numpy()


def _check_space(root: Path, needed: int) -> None:
    there = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        sizes = f"the arrays take {needed / 1e9:.1f} GB, and {there} has {free / 1e9:.1f} GB free"
        raise OSError(f"{sizes}: give another --root, or a smaller --side")


def _write_images(file: BinaryIO, paths: Sequence[str], side: int, part: str, progress: bool) -> None:
    from tqdm.auto import tqdm

    shape = (len(paths), side, side, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=len(paths), desc=part, disable=not progress) as bar:
        for start in range(0, len(paths), BLOCK):
            for pixels in pool.map(lambda path: _pixels(path, side), paths[start : start + BLOCK]):
                file.write(pixels)
                bar.update()


def _pixels(path: str, side: int) -> bytes:
    from PIL import Image
    from torchvision.transforms.functional import center_crop, resize

    try:
        with Image.open(path) as image:
            return center_crop(resize(image.convert("RGB"), [side]), [side]).tobytes()
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise ValueError(f"cannot read {path} ({error}): replace or delete it, then run this again") from None
