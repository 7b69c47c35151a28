"""Counts where the bytes of the packed networks go, and what a lossless stage would add.

``python book/scripts/file_bytes.py`` writes book/results/file_bytes.json, which the chapter on exact models reads.
"""

import lzma
import math
import struct
import time
from pathlib import Path

import numpy as np
import torch
import zstandard

import csq_mini as csq
from bench import where
from csq_mini.experiments import pretrained
from csq_mini.files import write_json

FILE = Path(__file__).resolve().parents[1] / "results" / "file_bytes.json"
LEVEL = 19  # of zstd, its strongest ordinary one


def entropy_bytes(codes):
    """What an ideal coder of single codes would need for a layer, without its table."""
    counts = np.unique(codes.numpy(), return_counts=True)[1]
    return -(counts * np.log2(counts / counts.sum())).sum() / 8


def shares(name):
    """Bytes of one packed network, by what they are for, and what coders make of its codes."""
    path = pretrained.WEIGHTS / f"{name}.safetensors"
    blob, packed = path.read_bytes(), csq.verify_packed(path)
    codes = {layer: x.codes().flatten() for layer, x in packed.layers.items()}
    payload = b"".join(bytes(x.payload) for x in packed.layers.values())
    plain = b"".join(c.numpy().astype("i1" if c.abs().max() < 128 else "<i2").tobytes() for c in codes.values())
    state = csq.models.pretrained(name).state_dict()
    weights = sum(len(c) for c in codes.values())
    return {
        "name": name, "accuracy": pretrained.row(name).accuracy, "weights": weights,
        "paper_bits": packed.report().total.paper_bits, "stored_bits": packed.report().total.stored_bits,
        "float_state": sum(t.numel() * t.element_size() for t in state.values()),
        "file": len(blob), "codes": len(payload), "header": 8 + struct.unpack("<Q", blob[:8])[0],
        "batch_norm_and_biases": sum(len(data) for _, _, data in packed.floats.values()),
        "entropy_of_codes": math.ceil(sum(entropy_bytes(c) for c in codes.values())),
        "zstd_of_packed_codes": len(zstandard.compress(payload, LEVEL)),
        "zstd_of_codes_as_bytes": len(zstandard.compress(plain, LEVEL)),
        "xz_of_codes_as_bytes": len(lzma.compress(plain, preset=9)),
        "zstd_of_file": len(zstandard.compress(blob, LEVEL)),
    }  # fmt: skip


def speed():
    """Seconds to save and to load a network of 11.7 million weights on one thread, the best of three."""
    torch.manual_seed(0)
    model = csq.models.resnet18()
    csq.convert(model)
    csq.Budget(model, 2.0).freeze()
    exact, path, found = csq.harden(model), FILE.with_suffix(".tmp"), {"save": [], "load": []}
    into = csq.models.resnet18()
    for _ in range(3):
        start = time.perf_counter()
        csq.save_packed(exact, path)
        found["save"].append(time.perf_counter() - start)
        start = time.perf_counter()
        csq.load_packed(path, into)
        found["load"].append(time.perf_counter() - start)
    path.unlink()
    return {"weights": csq.report(exact).total.weights, **{key: min(times) for key, times in found.items()}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_json(FILE, {"where": where(), "zstd": f"zstandard {zstandard.__version__}, level {LEVEL}",
                      "networks": [shares(name) for name in pretrained.names()], "speed": speed()})  # fmt: skip
    print(FILE.read_text())
