"""What a result must say of where it was made: hardware, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from ..files import __version__


def hardware(device: torch.device | str | None = None) -> dict[str, Any]:
    """Processor, threads, load, and the GPU where one is used, as results files state them.

    A load above the threads means that other work took part of the processor.
    """
    gpu = torch.device(device).type == "cuda" if device is not None else torch.cuda.is_available()
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    name = torch.cuda.get_device_name() if gpu else None
    return {"cpu": _cpu_name(), "threads": torch.get_num_threads(), "load": load, "gpu": name}


def versions() -> dict[str, str]:
    """Versions of the library, of torch and of Python."""
    return {"csq_mini": __version__, "torch": torch.__version__, "python": platform.python_version()}


def commit() -> str | None:
    """The commit of the library's repository, "+" behind it if its code was changed since; None outside git."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", str(here)) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
