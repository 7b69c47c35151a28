"""Rows of results: one JSON file a run, with the run's history as a table (CSV) beside it."""

from __future__ import annotations

import dataclasses
import io
import json
import lzma
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..files import write_json, write_whole

if TYPE_CHECKING:
    import pandas

SCHEMA = 1
"""Version of the rows; one that reads other rows than it writes gets another number."""


@dataclass(frozen=True)
class Row:
    """One run and what it came to; every field but ``scheme`` and ``recipe`` is a plain value.

    Attributes:
        schema: version of these fields.
        key: name of the row's file, made from the parameters.
        method, model, data, target, activation_bits, seed, profile: as given to :func:`csq_mini.reproduce`.
        search_epochs, finetune_epochs: of the recipe as it was run.
        start, start_accuracy: file name and SHA-256 of the float checkpoint begun from, and its
            accuracy on the test images; None for random weights.
        accuracy: on the test images, hardened, of the last epoch; a fraction.
        train_images, test_images: how many there were.
        paper_bits, stored_bits: a weight, on average; 32 for a float model.
        bytes: packed integers, steps, and all that stays float; ``original_bytes`` as float32.
        scheme: layer -> its planes, most significant first, as in :class:`csq_mini.Report`.
        history_digest: SHA-256 of the history without its times.
        seconds: wall time of training and judging; ``images_per_second`` the median epoch's.
        device, hardware, versions, commit: where and by what it was made.
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


def default_results() -> Path:
    """``book/results/rows`` of the repository the library lies in; of the present folder if it was installed."""
    root = Path(__file__).parents[1]
    return (root if (root / "book").is_dir() else Path()) / "book" / "results" / "rows"


def load_rows(folder: str | Path | None = None) -> pandas.DataFrame:
    """All rows of a folder as a table, a row a run, ordered by key; empty if there are none.

    Raises:
        ValueError: for a file that is not a row, or a row of another schema, with the file's name.
    """
    import pandas

    folder = Path(folder) if folder is not None else default_results()
    rows = [dataclasses.asdict(read_row(file)) for file in sorted(folder.glob("*.json"))]
    return pandas.DataFrame(rows, columns=[field.name for field in dataclasses.fields(Row)])


def read_row(file: Path) -> Row:
    """The row in a file; raises ValueError as :func:`load_rows` does."""
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


def load_history(key: str, folder: str | Path | None = None) -> pandas.DataFrame:
    """The history of the run with this key, as :func:`csq_mini.fit` returned it."""
    import pandas

    return pandas.read_csv((Path(folder) if folder is not None else default_results()) / f"{key}.csv")


def write_row(folder: Path, row: Row, history: pandas.DataFrame, model: nn.Module | None = None) -> None:
    """Write a row, its history, and the model's plain state if one is given.

    The row comes last: where there is one, its other files are there.
    """
    os.makedirs(folder, exist_ok=True)
    text = history.to_csv(index=False)
    write_whole(folder / f"{row.key}.csv", lambda file: file.write(text.encode()))
    if model is not None:
        save_plain(model, folder / f"{row.key}.pt.xz")
    write_json(folder / f"{row.key}.json", dataclasses.asdict(row))


def save_plain(model: nn.Module, path: Path) -> None:
    """A hardened model's state_dict as torch saves it, then xz: few distinct weights make it small."""
    plain = io.BytesIO()
    torch.save({name: t.detach().cpu() for name, t in model.state_dict().items()}, plain)
    write_whole(path, lambda file: file.write(lzma.compress(plain.getvalue())))
