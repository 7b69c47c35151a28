"""Counts what rounding alone does: the training loss right after rounding to each scheme of the scoreboard.

``python book/scripts/joint_losses.py FLOAT`` takes the float ResNet-20 that the rows began from. It writes
book/results/joint_losses.json: the loss of every row's scheme, and of twenty schemes at random for each target.
"""

import sys
from pathlib import Path

import torch

from bench import where
from csq_book.results import ROWS
from csq_book.results.scoreboard import BED
from csq_book.results.verdicts import select
from csq_mini import data, models
from csq_mini.experiments.baselines.allocations import allocate
from csq_mini.experiments.baselines.rounding import JointLoss
from csq_mini.experiments.checkpoints import read_state
from csq_mini.experiments.rows import load_rows
from csq_mini.files import write_json
from csq_mini.report import paper_bits

BATCHES = 8


def main() -> None:
    """Measure the schemes, and write them."""
    torch.set_num_threads(1)
    images, network = data.cifar10(), models.resnet20()
    network.load_state_dict(read_state(sys.argv[1]))
    joint, losses = JointLoss(network, images, seed=0, batches=BATCHES), {}
    rows = select(load_rows(ROWS), BED)
    for row in rows.to_dict("records"):
        losses[row["key"]] = joint({name: paper_bits(k) for name, k in row["scheme"].items()})
        print(row["key"], round(losses[row["key"]], 4), flush=True)
    random = {}
    for target in sorted(set(rows["target"])):
        schemes = [allocate("random", network, images, target, seed) for seed in range(20)]
        random[f"{target:g}"] = [joint(planes) for planes in schemes]
        print(f"at random, {target:g} bits:", *(round(loss, 3) for loss in sorted(random[f"{target:g}"])))
    found = {"where": where(), "images": BATCHES * 256, "float": joint({}), "rows": losses, "random": random}
    write_json(Path(ROWS).parent / "joint_losses.json", found)


if __name__ == "__main__":
    main()
