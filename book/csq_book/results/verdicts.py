"""Verdicts on the book's claims: means and spreads over rows of results, held against what was asked.

Rows come as the table of :func:`csq_mini.experiments.rows.load_rows`, claims from the book's
``published.yml``. Accuracies are percentages here, and their differences percentage points.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csq_mini.check import unknown
from csq_mini.experiments.plans import METHODS, PROFILES
from csq_mini.experiments.rows import Row

from . import PUBLISHED

if TYPE_CHECKING:
    import pandas

SCALES: Mapping[str, float] = {"accuracy": 100.0, "images_per_second": 1.0, "seconds": 1.0}
"""Columns a claim can be about, and what their values are multiplied by."""

FIELDS = {field.name for field in dataclasses.fields(Row)} | {"epochs", "started"}
CLAIM = {"what", "rows", "measure", "seeds", "at_least", "at_most", "of", "named", "within", "ratio"}


@dataclass(frozen=True)
class Sample:
    """A measure over n runs: its mean (NaN without runs) and standard deviation (None with fewer than two)."""

    mean: float
    spread: float | None
    n: int


@dataclass(frozen=True)
class Verdict:
    """What the rows say about a claim.

    Attributes:
        claim: an entry of ``claims`` in published.yml.
        ours: the measure over the rows the claim is about.
        beside: what they are compared with, if anything.
        word: "reached", "short" or "no bound"; "not run" or "incomplete" where runs are missing.
    """

    claim: Mapping[str, Any]
    ours: Sample
    beside: Sample | None
    word: str

    @property
    def measure(self) -> str:
        """The column of the rows the claim is about."""
        return self.claim.get("measure", "accuracy")

    @property
    def difference(self) -> float | None:
        """Our accuracy minus the other, or our speed divided by the other; None unless both are there."""
        if self.beside is None or not self.beside.n or not self.ours.n:
            return None
        ours, other = self.ours.mean, self.beside.mean
        return ours - other if self.measure == "accuracy" else ours / other


def read_published(path: str | Path = PUBLISHED) -> dict[str, Any]:
    """Read and check ``published.yml``: a misspelt field would show as "not run" for ever.

    Raises:
        ValueError: for a field, method, profile or figure that does not exist, with near names.
    """
    import yaml

    book = yaml.safe_load(Path(path).read_text("utf8"))
    filters = [figure.get("ours", {}) for figure in book["figures"]]
    for page in book["pages"].values():
        _check("figure", page["figures"], [figure["id"] for figure in book["figures"]])
        _check("profile", page["runs"], PROFILES)
        for claim in page["claims"]:
            _check("field of a claim", claim, CLAIM)
            _check("measure", [claim.get("measure", "accuracy")], SCALES)
            filters += [claim["rows"], {} if claim.get("of") == "start" else claim.get("of", {})]
        filters.append(page["rows"])
    for wanted in filters:
        _check("field of a row", wanted, FIELDS)
        _check("method", [wanted.get("method", "csq")], METHODS)
        _check("profile", [wanted.get("profile", "full")], PROFILES)
    return book


def _check(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"published.yml: {unknown(kind, name, known)}")


def select(rows: pandas.DataFrame, wanted: Mapping[str, Any]) -> pandas.DataFrame:
    """The rows whose fields have the wanted values; None means no value, ``hardware`` matches part of the name.

    Two columns are added, and can be wanted too: ``epochs`` (of both phases) and ``started`` (from a
    float checkpoint). ``hardware`` becomes one name.
    """
    places = [hardware_name(place) for place in rows["hardware"]]
    epochs = rows["search_epochs"] + rows["finetune_epochs"]
    rows = rows.assign(hardware=places, epochs=epochs, started=rows["start"].notna())
    for name, value in wanted.items():
        rows = rows.loc[[_fits(name, found, value) for found in rows[name]]]
    return rows


def _fits(name: str, found: Any, value: Any) -> bool:
    if name == "hardware":
        return value in found
    return found is None or found != found if value is None else found == value


def hardware_name(place: Mapping[str, Any]) -> str:
    """The hardware of a row as one name: its GPU, or its processor and threads."""
    threads = place["threads"]
    return place["gpu"] or f"{place['cpu']}, {threads} {'thread' if threads == 1 else 'threads'}"


def sample(rows: pandas.DataFrame, measure: str = "accuracy") -> Sample:
    """Mean and spread of a measure over the rows."""
    values = [value * SCALES[measure] for value in rows[measure]]
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Sample(statistics.fmean(values) if values else math.nan, spread, len(values))


def judge(claim: Mapping[str, Any], page: Mapping[str, Any], rows: pandas.DataFrame) -> Verdict:
    """Hold all rows against one claim of a page; ``claim`` and ``page`` as in published.yml."""
    measure, of = claim.get("measure", "accuracy"), claim.get("of")
    mine, beside = select(rows, {**page["rows"], **claim["rows"]}), None
    if of == "start":
        mine = mine[mine["started"]]
        beside = sample(mine.assign(accuracy=mine["start_accuracy"]))
    elif of is not None:
        theirs = select(rows, {**page["rows"], **claim["rows"], **of})
        if measure != "accuracy":  # speeds compare only on one machine
            mine = mine[mine["hardware"].isin(theirs["hardware"])]
            theirs = theirs[theirs["hardware"].isin(mine["hardware"])]
        beside = sample(theirs, measure)
    ours = sample(mine, measure)
    n = min(ours.n, beside.n) if beside else ours.n
    word = "not run" if not n else "incomplete" if n < claim["seeds"] else _word(claim, ours, beside)
    return Verdict(claim, ours, beside, word)


def _word(claim: Mapping[str, Any], ours: Sample, beside: Sample | None) -> str:
    low, high = claim.get("at_least", -math.inf), claim.get("at_most", math.inf)
    if beside and "within" in claim:
        low = beside.mean - claim["within"]
    elif beside and "ratio" in claim:
        low = beside.mean * claim["ratio"]
    if math.isinf(low) and math.isinf(high):
        return "no bound"
    return "reached" if low - 1e-9 <= ours.mean <= high + 1e-9 else "short"  # a mean on its bound has reached it


def weight_bits(figure: Mapping[str, Any]) -> float | None:
    """Bits a weight of a published figure, computed where its source gives only the compression."""
    return 32 / figure["compression"] if "compression" in figure else figure.get("weight_bits")


def best_rows(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Of the rows of one setting, those of the longest profile, with the number of epochs most seeds have.

    Smoke runs are left out: they say nothing about accuracy.
    """
    for profile in ("full", "cpu"):
        found = rows[rows["profile"] == profile]
        if len(found):
            counts = found["epochs"].value_counts()
            return found[found["epochs"] == max(counts.index, key=lambda epochs: (counts[epochs], epochs))]
    return rows[:0]
