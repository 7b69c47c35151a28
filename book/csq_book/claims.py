"""The steps of the workflow in ``book/workflow``: run a trial or a seed, choose rates, compare methods by seed."""

import os
import shutil
import statistics
import traceback
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from itertools import product
from pathlib import Path
from typing import Any

from csq_mini import reproduce
from csq_mini.check import Diverged
from csq_mini.experiments.rows import load_history, load_rows
from csq_mini.experiments.statistics import paired, summary
from csq_mini.files import read_json, write_json, write_whole

Bed = Mapping[str, Any]


def trials(bed: Bed) -> list[dict[str, Any]]:
    """The changes to the recipe that each method of a bed tries: every combination, so all have the same number."""
    return [dict(zip(bed["tune"], values)) for values in product(*bed["tune"].values())]


def tried(bed: Bed) -> range:
    """Numbers of the trials that must run: none where there is nothing to choose from."""
    number = len(trials(bed))
    return range(number if number > 1 else 0)


def settings(bed: Bed) -> list[tuple[str, str]]:
    """(target, method) of a bed, best first."""
    return [(str(target), method) for target in bed["targets"] for method in bed["methods"]]


def run(bed: Bed, target: str, method: str, seed: int, changes: Mapping[str, Any], folder: str, log: str) -> None:
    """Run one reproduction for each fold of the bed, on one core; the rows go to a folder of their own.

    What it says goes to ``log``, and so does an error before it is raised again.
    """
    import torch

    name, _, scheme = method.partition("+")
    changes, runs = {**bed.get("changes", {}), **changes}, Path("runs/claims", *Path(folder).parts[-4:])
    torch.set_num_threads(1)
    with open(log, "w") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            for fold in bed.get("folds", [None]):
                row = reproduce(name, target=float(target), seed=seed, scheme=scheme or None, changes=changes,
                                fold=fold, results=folder, run_dir=runs / f"fold{fold}", progress=False,
                                **bed["run"])  # fmt: skip
                print(f"{row.key}: {row.accuracy:.4f} at {row.paper_bits:.3f} bits", flush=True)
        except Exception:
            traceback.print_exc(file=file)
            raise


def trial(bed: Bed, target: str, method: str, seed: int, changes: Mapping[str, Any], folder: str, log: str) -> None:
    """The same for a rate that is tried: one with which a run diverges has lost, and leaves no rows but a word."""
    try:
        run(bed, target, method, seed, changes, folder, log)
    except Diverged as error:
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        Path(folder, "diverged.txt").write_text(str(error))


def choose(bed: Bed, folders: Iterable[str], file: str) -> None:
    """Write the changes of the trial whose hard accuracy on the validation splits was best at its end, and all trials.

    Without folders it is the only one. ``cut`` is what settling or the freeze took away, in bits a weight.
    """
    judged: list[dict[str, Any]] = []
    for changes, folder in zip(trials(bed), folders):
        ends = [load_history(key, folder).iloc[-1] for key in load_rows(folder)["key"]]
        means = {name: statistics.fmean([end.get(column, 0.0) for end in ends] or [0.0])
                 for name, column in (("validation", "hard"), ("cut", "cut"))}  # fmt: skip
        judged.append({"changes": changes, **means, "diverged": not ends})
    only = {"changes": trials(bed)[0]}
    best = max(judged, key=lambda trial: trial["validation"], default=only)  # of equals, the one named first
    write_json(file, {"changes": best["changes"], "tried": judged})


def compare(bed: Bed, against: str, folders: Mapping[tuple[str, str], list[str]], table: str, file: str) -> None:
    """Write every run of a bed as a line of a table, and what each method comes to beside another one.

    Args:
        against: the method that all are compared with, seed by seed and fold by fold; a bed may name its own.
        folders: of the seeds, by target and method; the chosen rates lie beside them.
    """
    import pandas

    runs, lines, against = [], [], bed.get("against", against)
    accuracy: dict[tuple[str, str], dict[tuple[int, Any], float]] = {}
    for (target, method), places in folders.items():
        rows = [row for place in places for row in load_rows(place).to_dict("records")]
        if len(rows) != len(places) * (folds := len(bed.get("folds", [None]))):
            raise ValueError(f"{len(rows)} rows of {method} at {target} bits, not {folds} in each of {len(places)} "
                             f"folders: delete {Path(places[0]).parent}, and run it again")  # fmt: skip
        runs += [_line(row) for row in rows]
        accuracy[target, method] = {(row["seed"], row["fold"]): row["accuracy"] for row in rows}
    for (target, method), mine in accuracy.items():
        chosen = read_json(Path(folders[target, method][0]).with_name("rates.json"))
        lines.append({"target": float(target), "method": method, **summary(mine),
                      "difference": paired(mine, accuracy[target, against]), **chosen})  # fmt: skip
    text = pandas.DataFrame(runs).to_csv(index=False)
    write_whole(Path(table), lambda out: out.write(text.encode()))
    write_json(file, {"against": against, "seeds": bed["seeds"], "settings": lines})


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a table says of a run; the row itself stays where it was made."""
    return {
        **{key: row[key] for key in ("target", "method", "allocation", "seed", "fold", "accuracy", "paper_bits",
                                     "stored_bits", "bytes", "search_epochs", "finetune_epochs")},
        "lr": row["recipe"]["lr"], "seconds": round(row["seconds"], 1), "device": row["device"],
        "processor": row["hardware"]["gpu"] or row["hardware"]["cpu"], "torch": row["versions"]["torch"],
        "commit": row["commit"], "key": row["key"],
    }  # fmt: skip


def rates(file: str) -> dict[str, Any]:
    """The changes that :func:`choose` wrote."""
    return read_json(file)["changes"]
