"""Rows of results: one JSON file a run, its history as a table (CSV) beside it, and where it was made."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..files import __version__, write_json, write_whole

if TYPE_CHECKING:
    import pandas

SCHEMA = 1
"""Version of the rows; a change that makes old rows unreadable gets another number."""


@dataclass(frozen=True)
class Row:
    """One run and what it came to; every field but the dicts is a plain value.

    Attributes:
        schema: version of these fields.
        key: name of the row's file, made from the parameters.
        method, model, data, target, activation_bits, seed, profile: as given to :func:`csq_mini.reproduce`.
        search_epochs, finetune_epochs: of the recipe as it was run.
        start, start_accuracy: file name and SHA-256 of the checkpoint that the run began from, and its accuracy on
            the test images; None for random weights.
        accuracy: on the test images, hardened, of the last epoch; a fraction.
        train_images, test_images: how many there were.
        paper_bits, stored_bits: a weight, on average; 32 for a float model.
        bytes: packed integers, steps, and all that stays float; ``original_bytes`` as float32.
        scheme: layer -> its planes, most significant first, as in :class:`csq_mini.Report`.
        history_digest: SHA-256 of the history without its times.
        seconds: wall time of training and judging; ``images_per_second`` the median epoch's.
        device, hardware, versions, commit: where it was made, see :func:`where`.
        recipe: every hyper-parameter.
    """

    schema: int
    key: str
    method: str
    model: str
    data: str
    target: float | None
    activation_bits: int | None
    seed: int
    profile: str
    search_epochs: int
    finetune_epochs: int
    start: str | None
    start_accuracy: float | None
    accuracy: float
    train_images: int
    test_images: int
    paper_bits: float
    stored_bits: float
    bytes: int
    original_bytes: int
    scheme: dict[str, str]
    history_digest: str
    seconds: float
    images_per_second: float
    device: str
    hardware: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    recipe: dict[str, Any]


def load_rows(folder: str | Path) -> pandas.DataFrame:
    """All rows in a folder as a table, ordered by key; ValueError for a file that is no row, or of another schema."""
    import pandas

    rows = [dataclasses.asdict(read_row(file)) for file in sorted(Path(folder).glob("*.json"))]
    return pandas.DataFrame(rows, columns=[field.name for field in dataclasses.fields(Row)])


def read_row(file: Path) -> Row:
    """The row in a file, or a ValueError as :func:`load_rows` raises it."""
    try:
        content = json.loads(file.read_text("utf8"))
        schema = content["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a row of results ({error!r}): delete it and run it again") from None
    if schema != SCHEMA:
        raise ValueError(f"{file} has schema {schema!r}, this version reads {SCHEMA}: run it again to renew it")
    try:
        return Row(**content)
    except TypeError as error:
        raise ValueError(f"{file} is not a row of results ({error}): delete it and run it again") from None


def load_history(key: str, folder: str | Path) -> pandas.DataFrame:
    """The history of the run with this key, as :func:`csq_mini.fit` returned it."""
    import pandas

    return pandas.read_csv(Path(folder) / f"{key}.csv")


def write_row(folder: str | Path, row: Row, history: pandas.DataFrame) -> None:
    """Write a row and its history. The row comes last: where there is one, its other files are there."""
    os.makedirs(folder, exist_ok=True)
    text = history.to_csv(index=False)
    write_whole(Path(folder) / f"{row.key}.csv", lambda file: file.write(text.encode()))
    write_json(Path(folder) / f"{row.key}.json", dataclasses.asdict(row))


def where(device: torch.device | str | None = None) -> dict[str, Any]:
    """Where a result is made: the ``device``, ``hardware``, ``versions`` and ``commit`` beside its figures.

    ``device`` None is the first GPU if there is one, else the CPU. A ``load`` above the ``threads`` means that other
    work took part of the processor; ``gpu`` is None where it is not used.
    """
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    gpu = torch.cuda.get_device_name() if kind == "cuda" else None
    return {
        "device": kind,
        "hardware": {"cpu": _cpu_name(), "threads": torch.get_num_threads(), "load": load, "gpu": gpu},
        "versions": {"csq_mini": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": commit(),
    }


def commit() -> str | None:
    """The commit of the library's repository, with a "+" if its code was changed since; None outside git."""
    here = Path(__file__).parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", str(here)) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
