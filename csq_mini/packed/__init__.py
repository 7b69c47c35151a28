"""Packed files: an exact model in as many bytes as its bits need."""

from .format import Packed, PackedFileError
from .load import load_packed
from .save import save_packed
from .verify import verify_packed

__all__ = ["Packed", "PackedFileError", "load_packed", "save_packed", "verify_packed"]
