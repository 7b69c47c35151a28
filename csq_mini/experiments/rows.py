"""Rows of results: one JSON file a run, its history as a table (CSV) beside it, and where it was made."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..files import __version__, read_json, read_whole, write_json, write_whole

if TYPE_CHECKING:
    import pandas

SCHEMA = 1
"""Version of the rows; a change that makes old rows unreadable gets another number."""

MAX_TABLE = 2**28  # bytes


@dataclass(frozen=True)
class Row:
    """One run and what it came to."""

    schema: int  # version of these fields
    key: str  # name of the row's file, made from the parameters
    method: str  # this and the next six: as given to csq_mini.reproduce
    model: str
    data: str
    target: float | None
    activation_bits: int | None
    seed: int
    profile: str
    search_epochs: int  # of the recipe as it was run
    finetune_epochs: int
    start: str | None  # file name and SHA-256 of the checkpoint that the run began from; None for random weights
    start_accuracy: float | None  # of that checkpoint, on the test images
    accuracy: float  # on the test images, hardened, of the last epoch; a fraction
    train_images: int  # how many there were
    test_images: int
    paper_bits: float  # a weight, on average; 32 for a float model
    stored_bits: float
    bytes: int  # packed integers, steps, and all that stays float
    original_bytes: int  # as float32
    scheme: dict[str, str]  # layer -> its planes, most significant first, as in csq_mini.Report
    history_digest: str  # SHA-256 of the history without its times
    seconds: float  # wall time of training and judging
    images_per_second: float  # of the median epoch
    device: str  # this and the next three: where it was made
    hardware: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    recipe: dict[str, Any]  # every hyper-parameter
    allocation: str | None = None  # how a baseline's scheme was chosen; None for a method that finds its own
    fold: int | None = None  # part of the data that was the test set; None where it is not cut, or the first was taken


def load_rows(folder: str | Path) -> pandas.DataFrame:
    """All rows in a folder as a table, ordered by key; ValueError for a file that is no row, or of another schema."""
    import pandas

    rows = [dataclasses.asdict(read_row(file)) for file in sorted(Path(folder).glob("*.json"))]
    return pandas.DataFrame(rows, columns=[field.name for field in dataclasses.fields(Row)])


def read_row(file: Path) -> Row:
    """The row in a file; ValueError if it is no row, was changed since it was written, or is of another schema.

    Rows of earlier versions carry no digest, and are read as they are.
    """
    return _checked(Path(file))[0]


def _checked(file: Path) -> tuple[Row, str | None]:
    """The row, and the digest of the table beside it."""
    try:
        content = read_json(file)
        schema, digest = content["schema"], content.pop("digest", None)
        if digest is not None and digest != _digest(content):
            raise ValueError("its contents do not match its digest")
        table = content.pop("table", None)
        if schema == SCHEMA:
            return Row(**content), table
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a row of results ({error!r}): delete it and run it again") from None
    raise ValueError(f"{file} has schema {schema!r}, this version reads {SCHEMA}: run it again to renew it")


def load_history(key: str, folder: str | Path) -> pandas.DataFrame:
    """The history of the run with this key, as :func:`csq_mini.fit` returned it; ValueError if it was changed since."""
    import pandas

    file = Path(folder) / f"{key}.csv"
    text, row = read_whole(file, MAX_TABLE), file.with_name(f"{key}.json")
    digest = _checked(row)[1] if row.exists() else None
    if digest not in (None, hashlib.sha256(text).hexdigest()):
        raise ValueError(f"{file} was changed since it was written: delete it and {row}, and run it again")
    return pandas.read_csv(io.BytesIO(text))


def write_row(folder: str | Path, row: Row, history: pandas.DataFrame) -> None:
    """Write a row and its history. The row comes last: where there is one, its other files are there."""
    os.makedirs(folder, exist_ok=True)
    text = history.to_csv(index=False).encode()
    write_whole(Path(folder) / f"{row.key}.csv", lambda file: file.write(text))
    content = dataclasses.asdict(row) | {"table": hashlib.sha256(text).hexdigest()}
    write_json(Path(folder) / f"{row.key}.json", content | {"digest": _digest(content)})


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def where(device: torch.device | str | None = None) -> dict[str, Any]:
    """Where a result is made: the ``device``, ``hardware``, ``versions`` and ``commit`` beside its figures.

    None takes the first GPU, else the CPU. A ``load`` above the ``threads`` means that other work shared the processor.
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
