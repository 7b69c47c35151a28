"""The steps of the workflow in ``book/workflow``: run a trial or a seed, choose rates, compare methods by seed."""

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from csq_mini.experiments.queue import words
from csq_mini.experiments.rows import load_history, load_rows
from csq_mini.experiments.statistics import paired, summary
from csq_mini.files import read_json, write_json

Bed = Mapping[str, Any]


def trials(bed: Bed) -> list[dict[str, Any]]:
    """The changes to the recipe that each method of a bed tries: every combination, so all have the same number."""
    return [dict(zip(bed["tune"], values)) for values in product(*bed["tune"].values())]


def tried(bed: Bed) -> range:
    """Numbers of the trials that must run: none where there is nothing to choose from."""
    number = len(trials(bed))
    return range(number if number > 1 else 0)


def settings(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(bed, target, method), best first."""
    return [(name, str(target), method) for name, bed in config["beds"].items()
            for target in bed["targets"] for method in bed["methods"]]  # fmt: skip


def run(bed: Bed, target: str, method: str, seed: int, changes: Mapping[str, Any], folder: str, log: str) -> None:
    """Run one reproduction, whose row goes to a folder of its own; CalledProcessError if it fails."""
    name, _, scheme = method.partition("+")
    job = {**bed["run"], "method": name, "scheme": scheme or None, "target": float(target), "seed": seed,
           "changes": changes, "results": folder, "run_dir": Path("runs/claims", *Path(folder).parts[-4:])}  # fmt: skip
    command = [sys.executable, "-m", "csq_mini.cli", "reproduce", *words(job), "--threads", "1", "--quiet"]
    with open(log, "w") as file:
        subprocess.run(command, stdout=file, stderr=file, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def choose(bed: Bed, folders: Iterable[str], file: str) -> None:
    """Write the changes of the trial whose hard accuracy on the validation split was best at its end.

    Without folders it is the only one.
    """
    judged: list[dict[str, Any]] = []
    for changes, folder in zip(trials(bed), folders):
        [key] = load_rows(folder)["key"]
        judged.append({"changes": changes, "validation": float(load_history(key, folder)["hard"].iloc[-1])})
    only = {"changes": trials(bed)[0]}
    best = max(judged, key=lambda trial: trial["validation"], default=only)  # of equals, the one named first
    write_json(file, {"changes": best["changes"], "tried": judged})


def compare(config: Mapping[str, Any], folders: Mapping[tuple[str, str, str], list[str]], file: str) -> None:
    """Write test accuracy of each setting, and its difference to the method that all are compared with, by seed."""
    accuracy: dict[tuple[str, str, str], dict[int, float]] = {}
    for setting, places in folders.items():
        rows = [row for place in places for row in load_rows(place).to_dict("records")]
        accuracy[setting] = {row["seed"]: row["accuracy"] for row in rows}
    lines = []
    for (bed, target, method), mine in accuracy.items():
        other = accuracy[bed, target, config["against"]]
        lines.append({"bed": bed, "target": float(target), "method": method, **summary(mine),
                      "difference": paired(mine, other)})  # fmt: skip
    write_json(file, {"against": config["against"], "settings": lines})


def rates(file: str) -> dict[str, Any]:
    """The changes that :func:`choose` wrote."""
    return read_json(file)["changes"]
