"""The command ``csq-mini``: train from the shell, and look after an installation."""

import argparse
import ast
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import data, models, recipes
from .check import shown, whole
from .data.store import listing
from .experiments.baselines.allocations import ALLOCATIONS
from .experiments.baselines.loop import GIVEN
from .experiments.pretrained import pack_run
from .experiments.queue import read_jobs, run_queue, words
from .experiments.reproduce import FOLDED, METHODS, PROFILES, SETUPS, reproduce
from .files import __version__
from .packed import verify_packed
from .train import fit, processes

MAX_THREADS = max(64, os.cpu_count() or 1)  # far more end the process in a way that no program can catch


def train(args: argparse.Namespace) -> None:
    """Train by a named recipe and print the report; under torchrun, with all its processes."""
    changes = dict(_assignment(text) for text in args.set)
    changes |= {key: getattr(args, key) for key in ("target", "seed") if getattr(args, key) is not None}
    recipe = recipes.get(args.recipe, **changes)
    usual_model, usual_data = SETUPS[args.recipe]
    data_name = args.data or usual_data
    build, load = models.get(args.model or usual_model), data.get(data_name)
    torch.manual_seed(recipe.seed)
    images = load() if data_name in FOLDED or args.data_root is None else load(root=args.data_root)
    network = build(num_classes=images.classes)
    with processes.join(args.device) as device:
        result = fit(
            network, images, recipe, run_dir=args.run_dir, device=device, bfloat16=args.bfloat16,
            progress=not args.quiet,
        )  # fmt: skip
        if processes.rank() > 0:
            return
    if result.report:
        print(result.report)
    kind = "hardened" if result.report else "float weights"
    print(f"accuracy on the test split: {result.accuracy:.4f} (last epoch, {kind}, seed {recipe.seed})")
    if args.run_dir:
        print(f"the run is in {args.run_dir}")


def repeat(args: argparse.Namespace) -> None:
    """Run one reproduction and sum up its row."""
    names = ("method", "model", "data", "target", "seed", "profile", "scheme", "activation_bits", "epochs", "start",
             "fold", "device", "run_dir", "data_root", "results", "keep")  # fmt: skip
    changes = dict(_assignment(text) for text in args.set)
    row = reproduce(**{name: getattr(args, name) for name in names}, changes=changes, progress=not args.quiet)
    print(f"{row.key}: accuracy {row.accuracy:.4f} at {row.paper_bits:.3f} paper bits, {row.bytes} bytes")
    print(f"{row.seconds:.0f} s, {row.images_per_second:.0f} images/s")


def queue(args: argparse.Namespace) -> int:
    """Run the jobs of a file for some minutes; 1 if any are left."""
    jobs = [{"results": args.results, **job} for job in read_jobs(args.file)]
    left = run_queue(jobs, args.jobs, args.minutes)
    print(f"{len(jobs) - len(left)} of {len(jobs)} jobs are done" + ("; left are:" if left else ""))
    for job in left:
        print("  csq-mini reproduce " + shlex.join(words(job)))
    if left:
        print("call it again to go on; what each job said is in runs/queue-*.log")
    return 1 if left else 0


def verify(args: argparse.Namespace) -> None:
    """Check a packed file, and say that it is sound."""
    packed = verify_packed(args.file)
    print(f"{args.file} is sound: {len(packed.layers)} quantized layers, {packed.file_bytes} bytes, "
          f"sha-256 {packed.sha256}")  # fmt: skip


def pack(args: argparse.Namespace) -> None:
    """Copy the packed file of a finished run, once it has been verified."""
    run = Path(args.run)
    run = run.resolve() if run.name in ("", "..") else run
    name = run.name if run.is_dir() else run.name.removesuffix(".json")
    file = args.out or run.with_name(f"{name}.safetensors")
    print(f"{file}: {pack_run(run, file)} bytes (csq-mini inspect {file})")


def doctor(args: argparse.Namespace) -> int:
    """Print versions, device, threads and data found, and what is missing; 1 if the library lacks something."""
    print(f"csq-mini {__version__} in {Path(__file__).parent}")
    if importlib.util.find_spec("csq_book"):
        print("csq_book, the package of the book's pages, is there too")
    print(f"Python {platform.python_version()} on {platform.platform()}")
    missing: dict[str, list[str]] = {}
    for package, extra in _requirements():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = f"missing (extra: {extra})" if extra else "missing"
            missing.setdefault(extra, []).append(package)
        print(f"  {package:22} {version}")
    print(f"device: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}")
    print(f"threads: {torch.get_num_threads()} of {os.cpu_count()} CPUs")
    root = data.root()
    found = sorted(shown(p.name) for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    print(f"data: digits (embedded); in {root}: {', '.join(found) or 'nothing'} (csq-mini data checks)")
    cloned = Path(__file__).parents[1].joinpath("pyproject.toml").exists()
    for extra, packages in missing.items():
        wanted = ("." if cloned else "csq-mini") + (f"[{extra}]" if extra else "")
        print(f"missing {', '.join(packages)}: pip install {'-e ' if cloned else ''}\"{wanted}\"")
    if not missing:
        print("nothing is missing")
    return 1 if "" in missing else 0


def _requirements() -> list[tuple[str, str]]:
    """(package, extra) for all that pyproject.toml names; the extra is empty for the library itself."""
    found: dict[str, str] = {}
    for text in importlib.metadata.requires("csq-mini") or []:
        name, _, extra = text.partition(";")
        found.setdefault(re.split(r"[<>=!~ \[]", name)[0], extra.partition("==")[2].strip(" '\""))
    found.pop("csq-mini", None)  # an extra that asks for another
    return list(found.items())


WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _assignment(text: str) -> tuple[str, Any]:
    """``field=value`` as the pair that a Recipe takes: a number, none, one of ``WORDS``, or patterns for skip."""
    name, sign, value = text.partition("=")
    word, fields = value.strip().lower(), {f.name: f for f in dataclasses.fields(recipes.Recipe)}
    if not sign:
        raise ValueError(f"--set takes field=value, got {text!r}")
    if name == "skip":
        return name, tuple(pattern for pattern in value.split(",") if pattern)
    if name in fields and isinstance(fields[name].default, bool):
        return name, WORDS.get(word, value)
    try:
        return name, None if word == "none" else ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return name, value


def parser() -> argparse.ArgumentParser:
    """The command line, as ``csq-mini --help`` explains it."""
    top = argparse.ArgumentParser("csq-mini", description="Mixed-precision quantization by CSQ (arXiv 2212.02770).")
    top.add_argument("--version", action="version", version=f"csq-mini {__version__}")
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, call: Callable[[argparse.Namespace], int | None], about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about)
        made.set_defaults(call=call)
        return made

    run = command("train", train, "train by a recipe and print the report")
    run.add_argument("recipe", help=f"one of: {', '.join(recipes.RECIPES)}")
    run.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change any field of the recipe")
    run.add_argument("--bfloat16", action=argparse.BooleanOptionalAction,
                     help="train under bfloat16 autocast, or not; if not given, on GPUs alone")  # fmt: skip
    _add_common(run)
    _add_reproduce(command("reproduce", repeat, "run one experiment of the book and write its row of results"))
    many = command("queue", queue, "run many reproductions, several side by side, for so many minutes")
    many.add_argument("file", metavar="FILE", help="JSON list of jobs, such as book/workflow/gpu.json, best first")
    many.add_argument("--jobs", type=int, default=1, help="at a time (default: %(default)s)")
    many.add_argument("--minutes", type=float, default=9.0, help="then all stop, to go on later (default: %(default)s)")
    many.add_argument("--results", metavar="DIR", default="results", help="folder for the rows (default: %(default)s)")
    look = command("inspect", lambda args: print(verify_packed(args.file)), "what a packed file holds: planes, bytes")
    look.add_argument("file", metavar="FILE")
    check = command("verify", verify, "check a packed file; exit code 2 if anything is wrong with it")
    check.add_argument("file", metavar="FILE")
    copy = command("pack", pack, "check and copy the packed file of a finished run")
    copy.add_argument("run", metavar="RUN", help="run folder, or the .json of a row of results that was kept")
    copy.add_argument("--out", metavar="FILE", help="file to write (default: the run's name with .safetensors)")
    there = command("data", lambda args: print(listing(args.root)), "data sets: what is there, how to get the rest")
    there.add_argument("--root", metavar="DIR", help="data root; if not given, CSQ_DATA, else data")
    command("doctor", doctor, "versions, device, data found, and what is missing")
    return top


def _add_reproduce(run: argparse.ArgumentParser) -> None:
    usual = "unless you say otherwise, resnet20 on cifar10 with target 2 and seed 0"
    kinds = "CSQ, float training, CSQ without one of its parts, or a baseline"
    run.add_argument("method", choices=METHODS, help=f"{kinds}; {usual}")
    run.add_argument("--profile", default="smoke", help="; ".join(f"{k}: {p.about}" for k, p in PROFILES.items()))
    run.add_argument("--scheme", help=f"planes of the layers, for {', '.join(GIVEN)}: {', '.join(ALLOCATIONS)} (with a "
                     "seed: random:17), or a JSON file; if not given, uniform")  # fmt: skip
    run.add_argument("--activation-bits", type=int, help="bits of the activations; if not given they stay float")
    run.add_argument("--epochs", type=int, help="in all, instead of the profile's")
    run.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change any field of the recipe")
    run.add_argument("--fold", type=int, help="of digits or mnist: the part that is the test set, 0 to 4")
    run.add_argument("--start", metavar="FILE", help="checkpoint to begin from (.safetensors, .pt or .pt.xz)")
    run.add_argument("--results", metavar="DIR", default="results", help="folder for the row (default: %(default)s)")
    run.add_argument("--keep", action="store_true", help="keep the model beside the row, as a packed file")
    _add_common(run, model="resnet20", data="cifar10", target=2.0, seed=0)


def _add_common(run: argparse.ArgumentParser, **defaults: Any) -> None:
    run.add_argument("--target", type=float, help="average paper bits a weight")
    run.add_argument("--seed", type=int, help="of weights, batches and augmentation")
    run.add_argument("--model", help=f"one of: {', '.join(models.MODELS)}")
    run.add_argument("--data", help=f"one of: {', '.join(data.DATA)}")
    run.add_argument("--run-dir", help="folder for checkpoints and results; a killed run goes on from it")
    run.add_argument("--data-root", metavar="DIR", help="where data sets lie; if not given, CSQ_DATA, else data")
    run.add_argument("--device", help="such as cpu or cuda:0")
    run.add_argument("--threads", type=int, help="of the CPU; one is fastest for the small digits CNN")
    run.add_argument("--quiet", action="store_true", help="no progress bar")
    run.set_defaults(**defaults)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; every error ends in one line and exit code 2."""
    args = parser().parse_args(argv)
    try:
        if getattr(args, "threads", None) is not None:
            torch.set_num_threads(whole("--threads", args.threads, 1, MAX_THREADS))
        return args.call(args) or 0
    except KeyboardInterrupt:
        text, code = "stopped", 130  # as shells have it
    except Exception as error:
        known = isinstance(error, (ValueError, TypeError, OSError, RuntimeError, ImportError))
        text, code = f"{'' if known else f'{type(error).__name__}: '}{' '.join(str(error).split())}", 2
    print(f"csq-mini: {shown(text)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
