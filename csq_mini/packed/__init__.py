"""Packed files: the format, its checks, saving and loading."""
