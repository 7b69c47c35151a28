"""Tries the csq-mini that this Python has installed: ``python .ci/smoke.py``, in an environment without the repository.

A small network is converted, hardened, saved and loaded, a trained one is read, and ``csq-mini doctor`` is content.
"""

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import csq_mini as csq

library = Path(csq.__file__)
if Path(sys.prefix) not in library.parents:
    sys.exit(f"csq_mini was imported from {library}, not from what is installed in {sys.prefix}")
if importlib.util.find_spec("csq_book"):
    sys.exit("csq_book is installed too: it belongs to the book, not to the library")

torch.manual_seed(0)
x = torch.randn(4, 1, 8, 8)
model = csq.models.digits_cnn()
csq.convert(model, planes=4)
csq.Budget(model, target=2.0).freeze()
exact = csq.harden(model).eval()
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "model.safetensors")
    csq.save_packed(exact, file)
    same = csq.load_packed(file).eval()
if not torch.equal(exact(x), same(x)):
    sys.exit("a model that was saved and loaded computes something else")
print(csq.report(exact))
csq.pretrained("resnet20-cifar10-2bit")

subprocess.run([Path(sys.prefix, "bin", "csq-mini"), "doctor"], check=True)
print(f"csq-mini {csq.__version__} works in {sys.prefix}")
