"""Folders of images in ImageNet's layout, decoded once into the arrays that ``folders.py`` reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..check import whole
from . import store
from .dataset import stratified_order
from .fetch import scratch_folder

BLOCK = 256  # images decoded ahead of the one being written


def decode(
    source: str | Path, root: str | Path | None = None, name: str = "imagefolder", side: int = 256,
    progress: bool = True,
) -> str:  # fmt: skip
    """Decode ``source``/train/<class>/* and ``source``/val/<class>/* into ``<root>/<name>-<side>``; says what it did.

    The shorter side is resized to ``side`` pixels, and the centre square kept. Images are stored in stratified order,
    so that the first ones serve as a validation set. ``root`` None is ``CSQ_DATA``, else ``data``.

    Raises:
        FileNotFoundError: if ``train`` or ``val``, or a class of one of them, is missing or empty.
        ValueError: for an image that cannot be read, naming it, or a bad ``name`` or ``side``.
        OSError: if the disk is too full. After an error what was there before is unchanged.
    """
    side = whole("side", side, 1)
    if not name or Path(name).name != name:
        raise ValueError(f"name must be a plain name for a folder, got {name!r}")
    here = store.root(root)
    target = here / f"{name}-{side}"
    if target.exists() and not store.folder_problems(target, side):
        return f"{target} is there already and whole; to decode again delete it first"
    files, classes = _files(Path(source).expanduser())
    _check_space(here, sum(len(paths) for paths, _ in files.values()) * side * side * 3)
    with scratch_folder(here, name) as scratch:
        _write_arrays(scratch / "ready", files, classes, side, progress)
        if target.exists():
            target.rename(scratch / "old")
        (scratch / "ready").rename(target)
    counts = ", ".join(f"{len(labels)} {part} images" for part, (_, labels) in files.items())
    return f"{counts}, {len(classes)} classes: {target}"


def _files(source: Path) -> tuple[dict[str, tuple[list[str], np.ndarray]], list[str]]:
    """Per part the paths and labels in stratified order, and the names of the classes."""
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


def _write_arrays(
    folder: Path, files: dict[str, tuple[list[str], np.ndarray]], classes: list[str], side: int, progress: bool
) -> None:
    folder.mkdir()
    for part, (paths, labels) in files.items():
        np.save(folder / f"{part}_labels.npy", labels)
        with open(folder / f"{part}_images.npy", "wb") as file:
            _write_images(file, paths, side, part, progress)
    (folder / "classes.json").write_text(json.dumps(classes))


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
