"""Records the runs behind the charts: ``python book/scripts/record.py [--seeds 0 1 2] [file]``.

Trains the digits network to 1, 2, 3, 4, 5 and 6 bits a weight, and once with float weights, for each seed,
on one CPU thread, one run at a time (10 to 15 seconds each on a quiet core), and writes
book/results/charts.json: of each run its accuracy on the test split, its bits, its bytes and its scheme; of
seed 0 also which planes were open after each epoch; and of the run to 2 bits the bit logits after each epoch,
as quantiles. The file is written after each run. Runs that it holds are not made again; remove it to start anew.
"""

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

import csq_mini as csq
from csq_mini.experiments.rows import where
from csq_mini.files import write_whole
from csq_mini.planes import FILLED

FILE = Path(__file__).resolve().parents[1] / "results" / "charts.json"
BUDGETS = (1, 2, 3, 4, 5, 6)
WATCHED = 2  # the budget whose bit logits are kept
QUANTILES = 200


def watch(trainer, entry):
    """What is noted after an epoch: the planes open in each layer, and the bit logits."""
    layers = trainer.budget.layers
    return {"phase": entry["phase"], "beta": entry["beta"], "logits": quantiles(layers),
            "open": {name: number(planes.open) for name, planes in layers.items()}}  # fmt: skip


def number(bits):
    """Planes as one integer: plane b is its bit b."""
    return sum(2**b for b, kept in enumerate(bits.tolist()) if kept)


def quantiles(layers):
    """Bit logits of all kept planes, both signs, at 200 evenly spaced ranks: each stands for as many of them."""
    kept = [logits.detach() if planes.frozen else logits.detach()[planes.open]
            for planes in layers.values() for logits in (planes.p, planes.n)]  # fmt: skip
    ranks = (torch.arange(QUANTILES) + 0.5) / QUANTILES
    return [round(x, 4) for x in torch.quantile(torch.cat([k.flatten() for k in kept]), ranks).tolist()]


def record(target, seed):
    """One run, as an entry of the file."""
    recipe = csq.recipes.get("digits", target=target, seed=seed)
    torch.manual_seed(seed)
    trainer, epochs = csq.Trainer(csq.models.digits_cnn(), csq.data.digits(), recipe), []
    if trainer.budget:
        trainer.on_epoch = lambda entry: epochs.append(watch(trainer, entry))
    start = time.perf_counter()
    while not trainer.done:
        trainer.epoch()
    exact = trainer.hardened() if trainer.budget else trainer.model
    run = {"target": target, "masks": recipe.masks, "seed": seed, "accuracy": csq.evaluate(exact, trainer.data),
           "seconds": round(time.perf_counter() - start, 1), "made": datetime.now(UTC).strftime("%Y-%m-%d"),
           **where("cpu")}  # fmt: skip
    if not trainer.budget:
        return run | {"bytes": sum(t.numel() * t.element_size() for t in exact.state_dict().values())}
    return run | described(csq.report(exact)) | (noted(trainer, epochs) if seed == 0 else {})


def described(report):
    """Size and scheme of a run."""
    total, lines = report.total, report.rows
    return {"bits": total.paper_bits, "bytes": total.bytes + total.float_bytes,
            "scheme": {line.name: line.paper_bits for line in lines},
            "weights": {line.name: line.weights for line in lines}}  # fmt: skip


def noted(trainer, epochs):
    """What was seen after each epoch, of the runs that charts follow."""
    layers = trainer.budget.layers
    found = {"filled": {name: number(planes.mask == FILLED) for name, planes in layers.items()},
             "open": {name: [epoch["open"][name] for epoch in epochs] for name in layers},
             "search_epochs": trainer.recipe.search_epochs}  # fmt: skip
    if trainer.recipe.target == WATCHED:
        found["gates"] = [{"epoch": i, "phase": e["phase"], "beta": e["beta"], "logits": e["logits"]}
                          for i, e in enumerate(epochs, 1)]  # fmt: skip
    return found


def write(file, rows):
    """Whole or not at all; a run a line."""
    rows = sorted(rows, key=lambda row: (row["seed"], row["target"] or 99))
    text = '{"network": "digits_cnn", "data": "digits", "runs": [\n'
    text += ",\n".join(json.dumps(row) for row in rows) + "\n]}\n"
    write_whole(file, lambda opened: opened.write(text.encode()))


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
