"""Records the runs behind the charts: ``python book/scripts/record.py [--seeds 0 1 2] [file]``.

Trains the digits network to 1, 2, 3, 4, 5 and 6 bits a weight, and once with float weights, for each seed,
on one CPU thread, one run at a time (10 to 15 seconds each on a quiet core), and writes
book/results/charts.json: of each run its accuracy on the test split, its bits, its bytes and its scheme; of
seed 0 also which planes were open after each epoch; and of the run to 2 bits the bit logits after each epoch,
as quantiles. The file is written after each run. Runs that it holds are not made again; remove it to start anew.
"""

import argparse
import copy
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F

import csq_mini as csq
from csq_mini.experiments import machine
from csq_mini.train import fit as training
from csq_mini.planes import FILLED

FILE = Path(__file__).resolve().parents[1] / "results" / "charts.json"
BUDGETS = (1, 2, 3, 4, 5, 6)
WATCHED = 2  # the budget whose bit logits are kept
QUANTILES = 200


class Recorded(training._Run):
    """The run of csq.fit, which also notes its masks and bit logits after each epoch."""

    def __init__(self, model, data, recipe):
        super().__init__(copy.deepcopy(model), data, recipe, F.cross_entropy, csq.accuracy, False)
        self.epochs = []

    def _end_epoch(self, phase, bar):
        super()._end_epoch(phase, bar)
        if self.budget:
            layers = self.budget.layers
            open_planes = {name: number(layer.open) for name, layer in layers.items()}
            beta = float(next(iter(layers.values())).beta)
            self.epochs.append({"phase": phase, "beta": beta, "open": open_planes, "logits": quantiles(layers)})


def number(bits):
    """Planes as one integer: plane b is its bit b."""
    return sum(2**b for b, kept in enumerate(bits.tolist()) if kept)


def quantiles(layers):
    """Bit logits of all kept planes, both signs, at 200 evenly spaced ranks: each stands for as many of them."""
    kept = [torch.cat([layer.p[layer.open], layer.n[layer.open]]).detach().flatten() for layer in layers.values()]
    ranks = (torch.arange(QUANTILES) + 0.5) / QUANTILES
    return [round(x, 4) for x in torch.quantile(torch.cat(kept), ranks).tolist()]


def record(target, seed):
    """One run, as a row of the file."""
    recipe = csq.recipes.get("digits", target=target, seed=seed)
    torch.manual_seed(seed)
    run = Recorded(csq.models.digits_cnn(), csq.data.digits(), recipe)
    result = run.train()
    row = {"target": target, "seed": seed, "accuracy": result.accuracy, "seconds": round(result.seconds, 1),
           "made": datetime.now(UTC).strftime("%Y-%m-%d"), "versions": machine.versions(),
           "hardware": machine.hardware("cpu"), "commit": machine.commit()}  # fmt: skip
    if target is None:
        return row | {"bytes": sum(t.numel() * t.element_size() for t in result.model.state_dict().values())}
    total, layers = result.report.total, run.budget.layers
    row |= {"bits": total.paper_bits, "bytes": total.bytes + total.float_bytes,
            "scheme": {r.name: r.paper_bits for r in result.report.rows},
            "weights": {r.name: r.weights for r in result.report.rows}}  # fmt: skip
    if seed == 0:
        row["filled"] = {name: number(layer.mask == FILLED) for name, layer in layers.items()}
        row["open"] = {name: [epoch["open"][name] for epoch in run.epochs] for name in layers}
        row["search_epochs"] = recipe.search_epochs
    if seed == 0 and target == WATCHED:
        row["gates"] = [{"epoch": i, "phase": e["phase"], "beta": e["beta"], "logits": e["logits"]}
                        for i, e in enumerate(run.epochs, 1)]  # fmt: skip
    return row


def write(file, rows):
    """Whole or not at all; a row a line."""
    rows = sorted(rows, key=lambda row: (row["seed"], row["target"] or 99))
    text = '{"network": "digits_cnn", "data": "digits", "runs": [\n'
    text += ",\n".join(json.dumps(row) for row in rows) + "\n]}\n"
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(text, "utf8")
    os.replace(temporary, file)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("file", nargs="?", type=Path, default=FILE)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = json.loads(options.file.read_text("utf8"))["runs"] if options.file.exists() else []
    done = {(row["target"], row["seed"]) for row in rows}
    for seed in options.seeds:
        for target in (*BUDGETS, None):
            if (target, seed) not in done:
                rows.append(record(target, seed))
                write(options.file, rows)
                accuracy, seconds = rows[-1]["accuracy"], rows[-1]["seconds"]
                print(f"target {target}, seed {seed}: {accuracy:.4f} in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
