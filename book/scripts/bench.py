"""Benchmarks whose figures the README and the book show: ``python book/scripts/bench.py [steps] [digits] [stability]``.

``steps``: time of a CSQ training step over a float one (ResNet-20, optimizer included), and of
drawing a batch of images, as median ratios of interleaved pairs, because machines are noisy; and
bytes a weight.
``digits``: hardened accuracy of the digits network by cross-validation over all images, against
float and uniform precision trained the same way, and whether every budget is kept.
``stability``: how steadily CSQ and other methods train the digits network at two bits: falls of
the accuracy, soft against hard, and the signal in the gradients of mini-batches.
Each writes book/results/bench_<name>.json with seeds, hardware and versions.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.benchmark import Timer

from csq_book.results.readme import table
from csq_mini import data, models, recipes
from csq_mini.conversion import convertible
from csq_mini.data.dataset import CropFlip, Normalise
from csq_mini.experiments.baselines.loop import SEARCHES, prepared
from csq_mini.experiments.rows import where as made_where
from csq_mini.experiments.stability import signal_to_noise, soft_to_hard, worst_fall
from csq_mini.files import write_json
from csq_mini.gates import temperature
from csq_mini.planes import csq_layers
from csq_mini.report import report
from csq_mini.train import Trainer, evaluate, fit

SEEDS, FOLDS, TARGETS = (0, 1, 2), 5, (1.5, 2.0, 3.0, 4.0, 5.0)


def where() -> dict[str, Any]:
    """Versions and hardware in one dict, as each results file states them."""
    here = made_where()
    return {**here["versions"], **here["hardware"]}


def trainer(phase: str, batch: int = 128, bfloat16: bool = False) -> Trainer:
    """A ResNet-20 about to take a step of a phase: "float", "search", or "finetune" (frozen at 2 bits)."""
    search, target = (0 if phase == "finetune" else 1000), (None if phase == "float" else 2.0)
    recipe = recipes.get("resnet20-cifar10", target=target, search_epochs=search, finetune_epochs=1000,
                         batch_size=batch, lr=0.01)  # fmt: skip
    torch.manual_seed(0)
    return Trainer(models.resnet20(), random_images(4 * batch), recipe, bfloat16=bfloat16)


def one_step(trainer: Trainer) -> Callable[[], Tensor]:
    """A training step of images that are drawn already, with everything else that fit does in a step."""
    batch, numbers = trainer.data.training_batch(trainer.recipe.batch_size, 0, 0), itertools.count()

    def step() -> Tensor:
        trainer.temperature = temperature(next(numbers) % 100 / 100)
        return trainer.step(batch)

    return step


def random_images(count: int) -> data.Data:
    """Random bytes, cropped, flipped and normalised as CIFAR-10's images are."""
    normalise = Normalise((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    x, y = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (count,))
    split = x.contiguous(memory_format=torch.channels_last), y
    return data.Data("random bytes", split, split, split, CropFlip(32, pad=4), normalise)


def image_batches(batch: int = 128) -> Callable[[], None]:
    """Draws one training batch a call from as many images as CIFAR-10 has."""
    images, numbers = random_images(50_000), itertools.count()

    def draw() -> None:
        images.training_batch(batch, 0, next(numbers))

    return draw


def steps(pairs: int = 30, batch: int = 128) -> dict[str, Any]:
    """Ratio of step times, share of the data, and bytes a weight, of ResNet-20."""
    work = {phase: one_step(trainer(phase, batch)) for phase in ("float", "search", "finetune")}
    work |= {f"{phase}, bfloat16": one_step(trainer(phase, batch, True)) for phase in ("float", "search")}
    work["draw"] = image_batches(batch)
    threads = torch.get_num_threads()
    timers = {name: Timer("step()", globals={"step": step}, num_threads=threads) for name, step in work.items()}
    times = [{name: timer.timeit(1).mean for name, timer in timers.items()} for _ in range(pairs + 2)]
    times = times[2:]  # the first are slow
    found = {"model": "resnet20", "batch": batch, "pairs": pairs, "seed": 0,
             "float_step_s": statistics.median(t["float"] for t in times), **memory()}  # fmt: skip
    for key, over, under in (
        ("search_ratio", "search", "float"), ("finetune_ratio", "finetune", "float"), ("data_share", "draw", "float"),
        ("bfloat16_float_ratio", "float", "float, bfloat16"), ("bfloat16_search_ratio", "search", "search, bfloat16"),
    ):  # fmt: skip
        ratios = [t[over] / t[under] for t in times]
        found |= {key: statistics.median(ratios), f"{key}_quartiles": statistics.quantiles(ratios, n=4)[::2]}
        print(f"{over} step over {under} step: median {found[key]:.3f} of {pairs} interleaved pairs")
    return found


def memory() -> dict[str, float]:
    """Bytes a weight of state (parameters, gradients, momentum) in both phases, and saved for backward, measured."""
    found: dict[str, float] = {}
    for phase in ("search", "finetune"):
        run = trainer(phase, batch=2)
        run.step()
        layers = list(csq_layers(run.model).values())
        weights = sum(planes.shape.numel() for planes in layers)
        own = [parameter for planes in layers for parameter in planes.parameters() if parameter in run.optimizer.state]
        kept = [t for p in own for t in (p, p.grad, *run.optimizer.state[p].values()) if t is not None]
        state = sum(t.nbytes for t in kept)
        # two float32 logits a plane and weight, three times
        bound = sum(len(planes.p) * planes.shape.numel() for planes in layers) * 2 * 3 * 4 / weights
        found |= {f"{phase}_bytes_per_weight": state / weights, f"{phase}_bound_bytes_per_weight": bound,
                  f"{phase}_saved_beyond_parameters_bytes": saved_bytes(layers)}  # fmt: skip
        print(f"state in the {phase}: {state / weights:.1f} bytes a weight (bound {bound:.1f})")
    return found


def saved_bytes(layers: Sequence[nn.Module]) -> int:
    """Bytes that computing each layer's weight keeps for the backward pass, its own state aside."""
    own = {t.untyped_storage().data_ptr() for layer in layers for t in (*layer.parameters(), *layer.buffers())}
    saved: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        kept = [layer() for layer in layers]  # alive, so that no storage is reused
    assert kept
    return sum(saved.values())


def digits_run(job: tuple[str, float | None, int, int]) -> dict[str, Any]:
    """Train one digits network: (kind, target, fold, seed) in, one row out."""
    kind, target, fold, seed = job
    recipe = recipes.get("digits", target=target, seed=seed)
    if kind == "uniform":  # freeze at once: every layer the same planes, as many epochs in all
        recipe = recipe.replace(search_epochs=0, finetune_epochs=recipe.search_epochs + recipe.finetune_epochs)
    torch.manual_seed(seed)
    start = time.perf_counter()
    result = fit(models.digits_cnn(), data.digits(fold), recipe, progress=False)
    bits = result.report.total.paper_bits if result.report else None
    return {"kind": kind, "target": target, "fold": fold, "seed": seed, "accuracy": result.accuracy, "bits": bits,
            "seconds": time.perf_counter() - start}  # fmt: skip


def digits() -> dict[str, Any]:
    """Cross-validated digits: float, CSQ and uniform 2 bits on every fold and seed, other targets too."""
    alone = digits_run(("csq", 2.0, 0, 0))["seconds"]
    print(f"one run, {torch.get_num_threads()} threads: {alone:.1f} s")
    cases = [("float", None), ("uniform", 2.0)] + [("csq", target) for target in TARGETS]
    jobs = [(kind, target, fold, seed) for kind, target in cases for fold in range(FOLDS) for seed in SEEDS]
    with multiprocessing.get_context("spawn").Pool(torch.get_num_threads(), torch.set_num_threads, (1,)) as pool:
        rows = []
        for row in pool.imap(digits_run, jobs):
            rows.append(row)
            print("{kind} {target} fold {fold} seed {seed}: {accuracy:.4f}".format(**row), flush=True)
    return {"folds": FOLDS, "seeds": SEEDS, "recipe": recipes.get("digits").to_dict(), "one_run_s": alone,
            "summary": [_summary(rows, *case) for case in cases], "rows": rows}  # fmt: skip


def _summary(rows: list[dict[str, Any]], kind: str, target: float | None) -> dict[str, Any]:
    chosen = [row for row in rows if (row["kind"], row["target"]) == (kind, target)]
    # One value a seed, over all images; its spread over seeds is what a repetition would show.
    by_seed = [np.mean([row["accuracy"] for row in chosen if row["seed"] == seed]) for seed in SEEDS]
    mean, std = float(np.mean(by_seed)), float(np.std(by_seed, ddof=1))
    most = max((row["bits"] for row in chosen if row["bits"]), default=None)
    print(f"{kind} {target}: {mean:.4f} +- {std:.4f}, at most {most} bits")
    return {"kind": kind, "target": target, "accuracy": mean, "std_over_seeds": std, "runs": len(chosen),
            "max_bits": most}  # fmt: skip


def stability_run(case: tuple[str, int]) -> dict[str, Any]:
    """One training by a method and a seed, watched: case is (method, seed)."""
    method, seed = case
    torch.manual_seed(seed)
    images, net = data.digits(), models.digits_cnn()
    recipe = recipes.get("digits", seed=seed, masks="free" if method == "free-masks" else "ordered")
    if method in ("csq", "free-masks"):
        trainer: Any = Trainer(net, images, recipe)
        hardened = trainer.hardened
    else:
        level = dict.fromkeys(convertible(net)[0], 2)
        trainer, hardened = prepared(method, net, images, recipe, None if method in SEARCHES else level, cross_entropy)
    signals = []
    while not trainer.done:
        trainer.epoch()
        if len(trainer.history) % 3 == 0:
            batches = [images.training_batch(recipe.batch_size, 1000 + seed, k) for k in range(16)]
            signals.append(signal_to_noise(trainer.model, batches))
    history, exact = pandas.DataFrame(trainer.history), hardened()
    return {"method": method, "seed": seed, "bits": report(exact).total.paper_bits, "signal_to_noise": signals,
            "worst_fall": worst_fall(history),
            "worst_fall_hard": worst_fall(history, "hard"), "soft_minus_hard_at_the_end": soft_to_hard(history),
            "accuracy": evaluate(exact, images)}  # fmt: skip


def stability() -> dict[str, Any]:
    """Digits at two bits, the first fold: a run for each method and seed."""
    cases = [(method, seed) for method in ("csq", "free-masks", "planes", "ste", "lsq", "bsq") for seed in SEEDS]
    with multiprocessing.get_context("spawn").Pool(torch.get_num_threads(), torch.set_num_threads, (1,)) as pool:
        rows = []
        for row in pool.imap(stability_run, cases):
            rows.append(row)
            print("{method} seed {seed}: {accuracy:.4f}, falls {worst_fall:.3f}".format(**row), flush=True)
    return {"seeds": SEEDS, "recipe": recipes.get("digits").to_dict(), "every_epochs": 3, "batches": 16, "rows": rows}


def main() -> None:
    """Run the named benchmarks, or all, and write their JSON."""
    known = {"steps": steps, "digits": digits, "stability": stability}
    parser = argparse.ArgumentParser(prog="python book/scripts/bench.py", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *known], default=[], help="some of these, or all")
    parser.add_argument("--out", default="book/results", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or known:
        print(f"== {name}")
        write_json(args.out / f"bench_{name}.json", {"where": where(), **known[name]()})
    if all((args.out / f"bench_{name}.json").exists() for name in known):
        print(f"\nFor README.md, between its marks:\n\n{table(args.out)}")


if __name__ == "__main__":
    main()
