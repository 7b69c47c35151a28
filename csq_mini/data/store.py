"""What lies under the data root, whether it is whole, and what to run if it is not.

Published sets are judged by the checksums in torchvision's classes, arrays of decoded images by their shapes.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..check import unknown
from ..files import open_regular, read_json, read_whole

MAX_PUBLISHED = 2**28  # bytes of a file of a published data set
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "fashion_mnist": "Fashion-MNIST"}
PARTS = ("train", "val")  # of a folder of images, decoded or not
ARRAYS = [f"{part}_{kind}.npy" for part in PARTS for kind in ("images", "labels")]


def root(given: str | Path | None = None) -> Path:
    """The data root: what is given, else the environment variable ``CSQ_DATA``, else ``data``."""
    return Path(given or os.environ.get("CSQ_DATA") or "data").expanduser()


@dataclass(frozen=True)
class Source:
    """A published data set."""

    title: str
    folder: str  # under the data root
    files: dict[str, str]  # name -> md5 of each file that is read, training files first
    archives: list[tuple[str, str, str]]  # address, file name and md5 of each download


def source(name: str) -> Source:
    """What torchvision knows of ``cifar10``, ``cifar100`` or ``fashion_mnist``; ValueError for another name."""
    if name not in TITLES:
        raise ValueError(unknown("published data set", name, TITLES))
    from torchvision import datasets

    title = TITLES[name]
    if name == "fashion_mnist":
        fashion = datasets.FashionMNIST
        archives = [(fashion.mirrors[0] + file, file, md5) for file, md5 in fashion.resources]
        return Source(title, f"{fashion.__name__}/raw", dict(fashion.resources), archives)
    cifar = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    files = dict([*cifar.train_list, *cifar.test_list, [cifar.meta["filename"], cifar.meta["md5"]]])
    return Source(title, cifar.base_folder, files, [(cifar.url, cifar.filename, cifar.tgz_md5)])


def problems(name: str, place: str | Path) -> dict[str, str]:
    """File -> "missing" or "damaged", for each file of a data set under the folder ``place`` that is not whole."""
    known = source(name)
    states = {file: _checked(Path(place, known.folder, file), md5) for file, md5 in known.files.items()}
    return {file: state for file, state in states.items() if isinstance(state, str)}


def _checked(path: Path, md5: str) -> bytes | str:
    """The content of a file, or "missing" or "damaged"."""
    try:
        content = read_whole(path, MAX_PUBLISHED)
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError):
        return "damaged"
    return content if hashlib.md5(content, usedforsecurity=False).hexdigest() == md5 else "damaged"


def verified(name: str, place: str | Path | None = None) -> list[bytes]:
    """The contents of a published data set's files, read once: what is returned is what was checked.

    In the order of :class:`Source`; raises :func:`complaint`'s errors.
    """
    here, known = root(place), source(name)
    read = {file: _checked(here / known.folder / file, md5) for file, md5 in known.files.items()}
    found = {file: state for file, state in read.items() if isinstance(state, str)}
    if found:
        remedy = f"{fetch_command(name, here)} (with --from DIR if there is a copy on this machine)"
        raise complaint(known.title, here / known.folder, found, len(known.files), remedy)
    return [content for content in read.values() if isinstance(content, bytes)]


def complaint(title: str, folder: Path, found: dict[str, str], files: int, remedy: str) -> Exception:
    """What to raise if some of the ``files`` in a folder are missing (FileNotFoundError) or damaged (ValueError)."""
    text = f"{title} in {folder} is not whole: {in_words(found)}; run: {remedy}"
    if set(found.values()) != {"missing"}:
        return ValueError(text)
    return FileNotFoundError(text if len(found) < files else f"no {title} in {folder}; run: {remedy}")


def folder_problems(folder: Path, side: int) -> dict[str, str]:
    """File -> "missing" or what is wrong with it, for arrays that ``folders.py`` wrote: they have no checksums."""
    found: dict[str, str] = {}
    arrays: dict[str, Any] = {}
    for file in ["classes.json", *ARRAYS]:
        path = folder / file
        try:
            arrays[file] = read_json(path) if path.suffix == ".json" else _mapped(path)
        except FileNotFoundError:
            found[file] = "missing"
        except (ValueError, OSError, EOFError):
            found[file] = "damaged"
    return found or _misfits(arrays, side)


def _mapped(path: Path) -> np.ndarray:
    open_regular(path).close()
    return np.load(path, mmap_mode="r")


def _misfits(arrays: dict[str, Any], side: int) -> dict[str, str]:
    if not isinstance(arrays["classes.json"], list):
        return {"classes.json": "no list of names"}
    found, classes = {}, len(arrays["classes.json"])
    for part in PARTS:
        images, labels = arrays[f"{part}_images.npy"], arrays[f"{part}_labels.npy"]
        if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3):
            found[f"{part}_images.npy"] = f"{list(images.shape)} {images.dtype}, not [images, {side}, {side}, 3] uint8"
        elif labels.shape != images.shape[:1]:
            found[f"{part}_labels.npy"] = f"of shape {list(labels.shape)} for {len(images)} images"
        elif labels.dtype != np.int64:
            found[f"{part}_labels.npy"] = f"of type {labels.dtype}, not int64"
        elif len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            found[f"{part}_labels.npy"] = f"{labels.min()} to {labels.max()} for {classes} classes"
    return found


def fetch_command(name: str, here: Path) -> str:
    """How to fetch a data set into the data root ``here``."""
    where = "" if here == root() else f" --root {here}"
    needed = " --from DIR" if name == "image_folder" else ""
    return f"python data_scripts/{name}.py{needed}{where}"


def in_words(found: dict[str, str]) -> str:
    """What :func:`problems` found: "a is missing, b is damaged"."""
    return ", ".join(f"{file} is {state}" for file, state in found.items())


def listing(place: str | Path | None = None) -> str:
    """The text of ``csq-mini data``: for each data set whether it is whole, its size, and what to run if it is not."""
    here = root(place)
    if here.exists() and not here.is_dir():
        raise NotADirectoryError(f"the data root {here} is not a folder: give another --root, or set CSQ_DATA")
    inside = sorted(here.iterdir()) if here.exists() else []
    lines = [f"data root: {here}" + ("" if here.exists() else " (not there yet)"), f"  {'digits':<16} embedded"]
    for name in TITLES:
        lines.append(_line(name, here / source(name).folder, problems(name, here), fetch_command(name, here)))
    decode = fetch_command("image_folder", here)
    decoded = [folder for folder in inside if re.search(r"-\d+$", folder.name) and list(folder.glob("*.npy"))]
    for folder in decoded:
        name, _, side = folder.name.rpartition("-")
        remedy = f"{decode} --name {name} --side {side}"
        lines.append(_line(folder.name, folder, folder_problems(folder, int(side)), remedy))
    if not decoded:
        lines.append(_line("image_folder", here / "none", {"all": "missing"}, decode))
    left = [folder for folder in inside if folder.suffix == ".partial"]
    return "\n".join(lines + [f"{folder} was left by a run that was stopped: delete it" for folder in left])


def _line(name: str, folder: Path, found: dict[str, str], remedy: str) -> str:
    if not folder.exists():
        return f"  {name:<16} missing              run: {remedy}"
    megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    size = f"{megabytes:.1f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"
    state, what = ("damaged", f"{in_words(found)}; run: {remedy}") if found else ("whole", str(folder))
    return f"  {name:<16} {state:<9} {size:>9}  {what}"
