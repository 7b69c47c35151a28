"""What lies under the data root, and whether it is whole: the text of ``csq-mini data``."""

from __future__ import annotations

import re
from pathlib import Path

from . import store
from .folders import folder_problems

SIDE = re.compile(r"-\d+$")  # how the name of a folder of decoded images ends


def listing(root: str | Path | None = None) -> str:
    """A line a data set: whole, damaged or missing, its size, and what to do.

    Checksums of published sets are computed (a second each); arrays decoded from folders of images
    are judged by their sizes.

    Raises:
        OSError: if the data root is there and cannot be listed.
    """
    here = store.root(root)
    if here.exists() and not here.is_dir():
        raise NotADirectoryError(f"the data root {here} is not a folder: give another --root, or set CSQ_DATA")
    inside = sorted(here.iterdir()) if here.exists() else []
    lines = [f"data root: {here}" + ("" if here.exists() else " (not there yet)"), _line("digits", "embedded")]
    lines += [_published(name, here) for name in store.TITLES]
    decoded = [folder for folder in inside if SIDE.search(folder.name) and list(folder.glob("*.npy"))]
    lines += [_decoded(folder) for folder in decoded]
    if not decoded:
        lines.append(_line("image_folder", "missing", "", f"run: {store.command('image_folder', here)}"))
    left = [folder for folder in inside if folder.suffix == ".partial"]
    return "\n".join(lines + [f"{folder} was left by a run that was stopped: delete it" for folder in left])


def _published(name: str, here: Path) -> str:
    found, folder = store.problems(name, here), here / store.source(name).folder
    if not found:
        return _line(name, "whole", _size(folder), str(folder))
    remedy = f"run: {store.command(name, here)}"
    if not folder.exists():
        return _line(name, "missing", "", remedy)
    return _line(name, "damaged", _size(folder), f"{store.named(found)}; {remedy}")


def _decoded(folder: Path) -> str:
    found = folder_problems(folder, int(folder.name.rpartition("-")[2]))
    return _line(folder.name, "damaged" if found else "whole", _size(folder), store.named(found) or str(folder))


def _line(name: str, state: str, size: str = "", what: str = "") -> str:
    return f"  {name:<16} {state:<9} {size:>9}  {what}".rstrip()


def _size(folder: Path) -> str:
    megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    return f"{megabytes:.1f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"
