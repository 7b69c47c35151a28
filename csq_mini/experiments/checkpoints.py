"""Checkpoints that a run may begin from: packed files, safetensors, and state_dicts of torch, compressed or not."""

import io
import lzma
from pathlib import Path
from typing import BinaryIO

import torch

from ..files import MAX_FILE, open_regular
from ..files import read_state as read_opened
from ..packed import load_packed
from ..packed.format import KEY


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The state_dict in a .safetensors file (a packed one, too), or in a .pt or .pt.xz file.

    Raises FileNotFoundError if there is no such file, ValueError if it is not what its name says.
    """
    path = existing(path)
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        with open_regular(path) as file:
            return read_opened(_unpacked(file, path.stat().st_size) if path.suffix == ".xz" else file)
    except ImportError:
        raise
    except Exception as error:  # each format has its own kinds
        raise ValueError(f"{path} is no {path.suffix} file with a state_dict ({error})") from error


def _unpacked(file: BinaryIO, size: int) -> BinaryIO:
    """What an .xz file holds; ValueError before it is unpacked to more than trained weights ever would."""
    most = max(100 * size, 2**26)
    with lzma.open(file) as packed:
        content = packed.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it unpacks to more than {most} bytes, a hundred times its size")
    return io.BytesIO(content)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, "pt") as file:
        packed = KEY in (file.metadata() or {})
    return load_packed(path).state_dict() if packed else load_file(path)


def existing(start: str | Path) -> Path:
    """The path of a checkpoint; FileNotFoundError if there is none, ValueError if it is larger than one can be."""
    if not Path(start).is_file():
        raise FileNotFoundError(f"no checkpoint {start}: give the path of a .safetensors, .pt or .pt.xz file")
    if Path(start).stat().st_size > MAX_FILE:
        raise ValueError(f"{start} is larger than a checkpoint can be ({MAX_FILE} bytes)")
    return Path(start)
