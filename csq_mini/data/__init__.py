"""Data sets that live on the training device whole, and the files they are read from.

Every loader returns a :class:`Data`. :func:`digits` is embedded; the others read files under one
data root (an argument, else the environment variable ``CSQ_DATA``, else ``data``), which the scripts
in ``data_scripts/`` fetch.
"""

from __future__ import annotations

from collections.abc import Callable

from ..check import unknown
from .dataset import Data, Split
from .digits import digits
from .folders import image_folder
from .images import cifar10, cifar100, fashion_mnist
from .store import root

__all__ = ["DATA", "Data", "Split", "cifar10", "cifar100", "digits", "fashion_mnist", "get", "image_folder",
           "root"]  # fmt: skip

DATA: dict[str, Callable[..., Data]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fashion_mnist": fashion_mnist,
    "image_folder": image_folder,
}


def get(name: str) -> Callable[..., Data]:
    """The data set called ``name`` in the command line, as the function that loads it.

    Raises:
        ValueError: if there is none, with near names.
    """
    if name not in DATA:
        raise ValueError(unknown("data set", name, DATA))
    return DATA[name]
