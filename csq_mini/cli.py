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

from . import __version__, data, models, recipes
from .training import fit

SETUPS = {"digits": ("digits_cnn", "digits")}
"""Network and data that a named recipe was made for."""


def train(args: argparse.Namespace) -> int:
    """Train by a named recipe, print the report."""
    changes = dict(_assignment(text) for text in args.set)
    changes |= {key: getattr(args, key) for key in ("target", "seed") if getattr(args, key) is not None}
    recipe = recipes.get(args.recipe, **changes)
    model_name, data_name = SETUPS[args.recipe]
    build, load = models.get(args.model or model_name), data.get(args.data or data_name)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(recipe.seed)
    result = fit(build(), load(), recipe, run_dir=args.run_dir, device=args.device, progress=not args.quiet)
    if result.report:
        print(result.report)
    kind = "hardened" if result.report else "float weights"
    print(f"accuracy on the test split: {result.accuracy:.4f} (last epoch, {kind}, seed {recipe.seed})")
    if args.run_dir:
        print(f"the run is in {args.run_dir}")
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
    root = Path(os.environ.get("CSQ_DATA", "data"))
    found = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    print(f"data: digits (embedded); in {root}: {', '.join(found) or 'nothing'}")
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
    run.add_argument("--run-dir", help="folder for checkpoints and results; a killed run goes on from it")
    run.add_argument("--device", help="such as cpu or cuda:0")
    run.add_argument("--threads", type=int, help="of the CPU; one is fastest for networks as small as the digits CNN")
    run.add_argument("--quiet", action="store_true", help="no progress bar")
    run.set_defaults(call=train)
    check = commands.add_parser("doctor", help="versions, device, data found, and what is missing")
    check.set_defaults(call=doctor)
    return top


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
