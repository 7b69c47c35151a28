"""The command ``csq-mini``: train from the shell, and look after an installation."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import data, models, recipes
from .data.listing import listing
from .experiments.pretrained import pack_run
from .experiments.reproduce import METHODS, PROFILES, SETUPS, reproduce
from .files import __version__
from .packed import verify_packed
from .train import fit
from .train import processes as parallel


def train(args: argparse.Namespace) -> int:
    """Train by a named recipe, print the report; under torchrun, with all its processes."""
    changes = dict(_assignment(text) for text in args.set)
    changes |= {key: getattr(args, key) for key in ("target", "seed") if getattr(args, key) is not None}
    recipe = recipes.get(args.recipe, **changes)
    model_name, data_name = SETUPS[args.recipe]
    build, load = models.get(args.model or model_name), data.get(args.data or data_name)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(recipe.seed)
    embedded = (args.data or data_name) == "digits"
    images = load() if embedded or args.data_root is None else load(root=args.data_root)
    network = build(**({"num_classes": images.classes} if images.classes else {}))
    with parallel.join(args.device) as device:
        result = fit(network, images, recipe, run_dir=args.run_dir, device=device, progress=not args.quiet)
        if parallel.rank():
            return 0
    if result.report:
        print(result.report)
    kind = "hardened" if result.report else "float weights"
    print(f"accuracy on the test split: {result.accuracy:.4f} (last epoch, {kind}, seed {recipe.seed})")
    if args.run_dir:
        print(f"the run is in {args.run_dir}")
    return 0


def repeat(args: argparse.Namespace) -> int:
    """Run one reproduction and print its row in a few lines."""
    if args.threads:
        torch.set_num_threads(args.threads)
    names = ("method", "model", "data", "target", "seed", "profile", "activation_bits", "epochs", "start", "device",
             "run_dir", "data_root", "results", "keep")  # fmt: skip
    row = reproduce(**{name: getattr(args, name) for name in names}, progress=not args.quiet)
    print(f"{row.key}: accuracy {row.accuracy:.4f} at {row.paper_bits:.3f} paper bits, {row.bytes} bytes")
    print(f"{row.seconds:.0f} s, {row.images_per_second:.0f} images/s")
    return 0


def inspect(args: argparse.Namespace) -> int:
    """Print what a packed file holds."""
    print(verify_packed(args.file))
    return 0


def verify(args: argparse.Namespace) -> int:
    """Check a packed file, and say that it is sound."""
    packed = verify_packed(args.file)
    print(f"{args.file} is sound: {len(packed.layers)} quantized layers, {packed.file_bytes} bytes, "
          f"sha-256 {packed.sha256}")  # fmt: skip
    return 0


def pack(args: argparse.Namespace) -> int:
    """Pack a finished run into one file."""
    run = Path(args.run)
    file = Path(args.out) if args.out else run.with_suffix(".safetensors")
    written = pack_run(run, file)
    print(f"{file}: {written} bytes (csq-mini inspect {file})")
    return 0


def list_data(args: argparse.Namespace) -> int:
    """Print what lies under the data root, and whether it is whole; 0 whatever that is, if it can be read."""
    print(listing(args.root))
    return 0


def doctor(args: argparse.Namespace) -> int:
    """Print versions, device, threads and data found, and what is missing; 1 if the library lacks something."""
    print(f"csq-mini {__version__} in {Path(__file__).parent}")
    print(f"Python {platform.python_version()} on {platform.platform()}")
    missing: dict[str, list[str]] = {}
    for package, extra in _requirements():
        try:
            print(f"  {package:22} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {package:22} missing" + (f" (extra: {extra})" if extra else ""))
            missing.setdefault(extra, []).append(package)
    print(f"device: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}")
    print(f"threads: {torch.get_num_threads()} of {os.cpu_count()} CPUs")
    root = data.root()
    found = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    print(f"data: digits (embedded); in {root}: {', '.join(found) or 'nothing'} (csq-mini data checks)")
    for extra, packages in missing.items():
        print(f"missing {', '.join(packages)}: pip install -e " + (f'".[{extra}]"' if extra else "."))
    if not missing:
        print("nothing is missing")
    return 1 if "" in missing else 0


def _requirements() -> list[tuple[str, str]]:
    """(package, extra) for all that pyproject.toml names; the extra is empty for the library itself."""
    found: dict[str, str] = {}
    for text in importlib.metadata.requires("csq-mini") or []:
        name, _, extra = text.partition(";")
        package = name
        for sign in "<>=!~ [":
            package = package.partition(sign)[0]
        found.setdefault(package, extra.partition("==")[2].strip(" '\""))
    found.pop("csq-mini", None)  # an extra that asks for another
    return list(found.items())


def _assignment(text: str) -> tuple[str, Any]:
    """``field=value`` as the pair that a Recipe takes."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"--set takes field=value, got {text!r}")
    for read in (int, float):
        try:
            return name, read(value)
        except ValueError:
            pass
    return name, {"None": None}.get(value, tuple(value.split(",")) if name == "skip" else value)


def parser() -> argparse.ArgumentParser:
    """The command line, as ``csq-mini --help`` explains it."""
    about = "Mixed-precision quantization by CSQ (arXiv 2212.02770)."
    top = argparse.ArgumentParser(prog="csq-mini", description=about)
    top.add_argument("--version", action="version", version=f"csq-mini {__version__}")
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("train", help="train by a recipe and print the report")
    run.add_argument("recipe", help=f"one of: {', '.join(recipes.RECIPES)}")
    run.add_argument("--target", type=float, help="average paper bits a weight")
    run.add_argument("--seed", type=int)
    run.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change any field of the recipe")
    run.add_argument("--model", help=f"one of: {', '.join(models.MODELS)}")
    run.add_argument("--data", help=f"one of: {', '.join(data.DATA)}")
    _add_common(run)
    run.set_defaults(call=train)
    again = commands.add_parser("reproduce", help="run one reproduction of the book and write its row of results")
    again.add_argument("method", choices=METHODS, help="CSQ, float training, or CSQ with one part taken away")
    again.add_argument("--model", default="resnet20", help=f"one of: {', '.join(models.MODELS)}")
    again.add_argument("--data", default="cifar10", help=f"one of: {', '.join(data.DATA)}")
    again.add_argument("--target", type=float, default=2.0, help="average paper bits a weight (default 2)")
    again.add_argument("--seed", type=int, default=0)
    again.add_argument("--profile", default="smoke", help="; ".join(f"{k}: {p.about}" for k, p in PROFILES.items()))
    again.add_argument("--activation-bits", type=int, help="bits of the activations; if not given they stay float")
    again.add_argument("--epochs", type=int, help="in all, instead of the profile's")
    again.add_argument("--start", metavar="FILE", help="float checkpoint to begin from (.safetensors, .pt or .pt.xz)")
    again.add_argument("--results", metavar="DIR", help="folder for the row (default: the book's)")
    again.add_argument("--keep", action="store_true", help="keep the hardened model's state beside the row")
    _add_common(again)
    again.set_defaults(call=repeat)
    look = commands.add_parser("inspect", help="what a packed file holds: layers, planes, bits, bytes")
    look.add_argument("file", metavar="FILE")
    look.set_defaults(call=inspect)
    sound = commands.add_parser("verify", help="check a packed file; exit code 2 if anything is wrong with it")
    sound.add_argument("file", metavar="FILE")
    sound.set_defaults(call=verify)
    into = commands.add_parser("pack", help="pack a finished run into one file")
    into.add_argument("run", metavar="RUN", help="run folder, or the .json of a row of results that was kept")
    into.add_argument("--out", metavar="FILE", help="file to write (default: the run's name with .safetensors)")
    into.set_defaults(call=pack)
    there = commands.add_parser("data", help="data sets there, whether they are whole, and how to get them")
    there.add_argument("--root", metavar="DIR", help="data root; if not given, CSQ_DATA, else data")
    there.set_defaults(call=list_data)
    check = commands.add_parser("doctor", help="versions, device, data found, and what is missing")
    check.set_defaults(call=doctor)
    return top


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--run-dir", help="folder for checkpoints and results; a killed run goes on from it")
    command.add_argument("--data-root", metavar="DIR", help="where data sets lie; if not given, CSQ_DATA, else data")
    command.add_argument("--device", help="such as cpu or cuda:0")
    command.add_argument("--threads", type=int, help="of the CPU; one is fastest for the small digits CNN")
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; errors of the user's making end in one line and exit code 2."""
    args = parser().parse_args(argv)
    try:
        return args.call(args)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        print(f"csq-mini: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
