"""Where published data sets lie, and whether they are whole.

Addresses, file names and checksums are those of torchvision's data set classes: they stand there
and nowhere else. ``data_scripts/`` and the command line show what this file does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..check import unknown

TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "fashion_mnist": "Fashion-MNIST"}


def root(given: str | Path | None = None) -> Path:
    """The data root: what is given, else the environment variable ``CSQ_DATA``, else ``data``."""
    return Path(given or os.environ.get("CSQ_DATA") or "data").expanduser()


@dataclass(frozen=True)
class Source:
    """A published data set.

    Attributes:
        title: its name in texts.
        folder: of its files, under the data root.
        files: name -> md5 of each file that is read, training files first.
        archives: (address, file name, md5) of each download.
    """

    title: str
    folder: str
    files: dict[str, str]
    archives: list[tuple[str, str, str]]


def source(name: str) -> Source:
    """What torchvision knows of ``cifar10``, ``cifar100`` or ``fashion_mnist``.

    Raises:
        ValueError: for another name.
    """
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
    from torchvision.datasets.utils import check_integrity

    known, found = source(name), {}
    for file, md5 in known.files.items():
        path = Path(place, known.folder, file)
        if not check_integrity(path, md5):
            found[file] = "damaged" if path.exists() else "missing"
    return found


def verified(name: str, place: str | Path | None = None) -> list[Path]:
    """The files of a data set, in the order of :class:`Source`, after a look at their checksums.

    Raises:
        FileNotFoundError: if some are missing. ValueError: if some are damaged. Both say which, and what to do.
    """
    here, known = root(place), source(name)
    found = problems(name, here)
    if found:
        raise _complaint(name, known, here, found)
    return [here / known.folder / file for file in known.files]


def command(name: str, here: Path) -> str:
    """How to fetch a data set into the data root ``here``."""
    where = "" if here == root() else f" --root {here}"
    needed = " --from DIR" if name == "image_folder" else ""
    return f"python data_scripts/{name}.py{needed}{where}"


def _complaint(name: str, known: Source, here: Path, found: dict[str, str]) -> Exception:
    remedy = f"run: {command(name, here)} (with --from DIR if there is a copy on this machine)"
    if set(found) == set(known.files) and set(found.values()) == {"missing"}:
        return FileNotFoundError(f"no {known.title} in {here / known.folder}; {remedy}")
    kind = ValueError if "damaged" in found.values() else FileNotFoundError
    return kind(f"{known.title} in {here / known.folder} is not whole: {named(found)}; {remedy}")


def named(found: dict[str, str]) -> str:
    """What :func:`problems` found, in words."""
    return ", ".join(f"{file} is {state}" for file, state in found.items())
