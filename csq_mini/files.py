"""Files: written whole or not at all, read only where they are files and to a limit; and the version they name."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

__version__ = "0.1.0"

MAX_FILE = 2**35  # bytes that a packed file or a checkpoint may have
MAX_JSON = 2**24
SEAL = b"csq-mini sha256 "  # begins the comment that ends a sealed .pt file; the digest of all before it follows
SEALED = len(SEAL) + 64
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(path: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a new file under a name of its own, make sure it is on disk, then rename it into place.

    OSError, naming the path, if that fails; then, and after Ctrl-C, what was there before is there still.
    """
    path = _refuse_special(path)
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.partial")
    try:
        with open(partial, "x+b") as file:  # "x": neither another writer's file nor what a link points to
            with contextlib.suppress(OSError):  # a file that is there keeps its mode
                shutil.copymode(path, partial)
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync(path.parent)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch hides a full disk
        if not isinstance(cause, OSError):
            raise
        raise _explained(cause, path) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _sync(folder: Path) -> None:
    """Make sure that a rename is on disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _explained(error: OSError, path: Path) -> OSError:
    what = f"cannot write {path}: {error.strerror or error}; give another path"
    if isinstance(error, FileNotFoundError):
        what = f"there is no folder {path.parent}: make it first, or give another path"
    elif error.errno in FULL:
        what += ", or free some space"
    new = type(error)(what)
    new.errno = error.errno
    return new


def write_json(path: str | Path, content: Any) -> None:
    """Write indented JSON, whole or not at all."""
    write_whole(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading; OSError if there is none, or if it is a folder, a device or a pipe, which may hang."""
    path = _refuse_special(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}: give the path of one")
    return open(path, "rb")


def _refuse_special(given: str | Path) -> Path:
    if not isinstance(given, (str, os.PathLike)):
        raise ValueError(f"a path must be text or a pathlib.Path, got {given!r}")
    path = Path(given)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the path of a file")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is a device or a pipe: give the path of a regular file")
    return path


def read_whole(path: str | Path, most: int) -> bytes:
    """All bytes of a file; ValueError, before more is read, if they are more than ``most``."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path} is larger than such a file can be ({most} bytes)")
    return content


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; ValueError if it is none."""
    try:
        return json.loads(read_whole(path, MAX_JSON))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None


def write_state(path: str | Path, state: Any) -> None:
    """Write what ``torch.load`` reads, sealed: the zip's comment holds the SHA-256 of all that comes before it."""

    def write(file: BinaryIO) -> None:
        torch.save(state, file)
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", SEALED))  # a zip ends with its comment, and with the length of that before it
        size = file.tell()
        file.seek(0)
        file.write(SEAL + _digest(file, size))

    write_whole(path, write)


def read_state(file: BinaryIO, sealed: bool = False) -> Any:
    """What an open .pt file holds, tensors and plain values alone.

    ValueError if its digest is wrong, if it has none and must be ``sealed``, or if it would unpack to more bytes than
    it has; torch raises many other kinds for a damaged file.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - SEALED, 0))
    seal = file.read()
    if sealed or seal.startswith(SEAL):
        file.seek(0)
        if SEAL + _digest(file, size - SEALED) != seal:
            raise ValueError("its contents do not match its sha-256" if seal.startswith(SEAL) else "it has no sha-256")
    if zipfile.is_zipfile(file) and sum(entry.file_size for entry in zipfile.ZipFile(file).infolist()) > size:
        raise ValueError("it is compressed, and may be larger than memory: save it by torch.save alone")
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def _digest(file: BinaryIO, size: int) -> bytes:
    sha = hashlib.sha256()
    for start in range(0, size, 2**20):
        sha.update(file.read(min(2**20, size - start)))
    return sha.hexdigest().encode()
