"""The tables of the README, from the result files of the benchmarks and the rows of the reproductions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from csq_mini.experiments.rows import Row, load_rows, read_row

from . import scoreboard, verdicts

LONGER = {("no-masks", "cpu"): "uniform", ("csq", "cpu"): "csq, free masks",
          ("csq", "held"): "csq, weights held in the search"}  # fmt: skip


def table(folder: Path) -> str:
    """The figures of the result files as Markdown tables, and who made them."""
    step, cross = (json.loads((folder / f"bench_{name}.json").read_text()) for name in ("steps", "digits"))
    board = verdicts.select(load_rows(folder / "rows"), scoreboard.BED | {"target": 2})
    longer = _longer(folder)
    first = [read_row(folder / "rows" / f"{key}.json") for key in board["key"]]
    parts = [
        _digits(cross), _board(board), _photographs(longer), _steps(step, cross),
        [_made("First table", cross["seeds"], cross["where"]), *_made_by("Second table", first),
         *_made_by("Third table", longer), _made("Fourth table", [step["seed"]], step["where"])],
    ]  # fmt: skip
    return "\n\n".join("\n".join(part) for part in parts)


def _digits(cross: Mapping[str, Any]) -> list[str]:
    lines = [
        "| digits, 5 folds x 3 seeds | bits a weight, at most | accuracy | spread over seeds |",
        "|---|---|---|---|",
    ]
    for row in cross["summary"]:
        bits = "32" if row["max_bits"] is None else f"{row['max_bits']:.3f}"
        name = row["kind"] if row["target"] is None else f"{row['kind']}, target {row['target']:g}"
        lines.append(f"| {name} | {bits} | {row['accuracy']:.2%} | {row['std_over_seeds']:.2%} |")
    return lines


def _board(rows: Any) -> list[str]:
    return [
        "| ResNet-20 on CIFAR-10, 2 bits, 3 epochs from float | seeds | accuracy | spread | ahead of uniform |",
        "|---|---|---|---|---|",
        *(f"| {r['method']} | {r['n']} | {r['accuracy']} | {r['spread']} | {r['ahead by']} |"
          for r in scoreboard.board(rows).to_dict("records")),
    ]  # fmt: skip


def _longer(folder: Path) -> list[Row]:
    """ResNet-20 on CIFAR-10 from a float network, seven epochs."""
    files = sorted((folder / "rows").glob("resnet20-cifar10-pretrained-*-seed0.json"))
    rows = [row for row in map(read_row, files) if (row.method, row.profile) in LONGER and row.activation_bits is None]
    rows = [row for row in rows if "epochs" not in row.key]
    return sorted(rows, key=lambda row: (row.target, list(LONGER).index((row.method, row.profile))))


def _photographs(rows: Sequence[Row]) -> list[str]:
    epochs = rows[0].search_epochs + rows[0].finetune_epochs
    return [
        f"| ResNet-20 on CIFAR-10, {epochs} epochs from a float network | bits a weight | accuracy |",
        "|---|---|---|",
        f"| float | 32 | {rows[0].start_accuracy:.2%} |",
        *(f"| {LONGER[r.method, r.profile]}, target {r.target:g} | {r.paper_bits:.3f} | {r.accuracy:.2%} |"
          for r in rows),
    ]  # fmt: skip


def _steps(step: Mapping[str, Any], cross: Mapping[str, Any]) -> list[str]:
    """A benchmark a line, with its bound."""
    return [
        f"| ResNet-20, batch {step['batch']} | measured | bound or aim |",
        "|---|---|---|",
        *(
            f"| {phase} step / float step, median of {step['pairs']} pairs (quartiles) | {step[f'{phase}_ratio']:.3f} "
            "({:.3f} to {:.3f}) ".format(*step[f"{phase}_ratio_quartiles"]) + f"| at most {most} |"
            for phase, most in (("search", "1.08"), ("finetune", "1.04"))
        ),
        f"| drawing a batch / float step, median | {step['data_share']:.1%} | at most 3% |",
        *(
            f"| parameters, gradients, momentum in the {phase}, bytes a weight "
            f"| {step[f'{phase}_bytes_per_weight']:.1f} | {step[f'{phase}_bound_bytes_per_weight']:.1f} |"
            for phase in ("search", "finetune")
        ),
        f"| float step / float step in bfloat16, median (quartiles) | {step['bfloat16_float_ratio']:.2f} "
        "({:.2f} to {:.2f}) | |".format(*step["bfloat16_float_ratio_quartiles"]),
        f"| search step / search step in bfloat16, median (quartiles) | {step['bfloat16_search_ratio']:.2f} "
        "({:.2f} to {:.2f}) | |".format(*step["bfloat16_search_ratio_quartiles"]),
        f"| saved for backward beyond parameters, bytes | {step['search_saved_beyond_parameters_bytes']} | 0 |",
        f"| one digits run, {_threads(cross['where'])}, seconds | {cross['one_run_s']:.1f} | at most 25 |",
    ]


def _made_by(title: str, rows: Sequence[Row]) -> list[str]:
    """A line for each profile of these rows."""
    lines = []
    for profile in dict.fromkeys(row.profile for row in rows):
        mine = [row for row in rows if row.profile == profile]
        seeds = sorted({row.seed for row in mine})
        lines += sorted({_made(f"{title}, profile {profile}", seeds, {**r.versions, **r.hardware}) for r in mine})
    return lines


def _made(title: str, seeds: Sequence[int], place: Mapping[str, Any]) -> str:
    return (f"{title}: seeds {', '.join(map(str, seeds))}, csq-mini {place['csq_mini']}, torch {place['torch']}, "
            f"{place['cpu']}, {_threads(place)}.")  # fmt: skip


def _threads(where: Mapping[str, Any]) -> str:
    return f"{where['threads']} thread{'s' * (where['threads'] > 1)}"
