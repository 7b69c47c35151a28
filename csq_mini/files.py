"""Files that are written whole or not at all, and the version that they name."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

__version__ = "0.1.0"


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file under a temporary name, make sure it is on disk, then rename it into place."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, whole or not at all."""
    write_whole(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))
