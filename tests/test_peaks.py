"""What the large steps need in passing: at most 48 bytes a weight of the largest layer beyond what they leave."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import csq_mini as csq
from csq_mini.planes import csq_layers

SIZE = (1024, 1000)
WEIGHTS = SIZE[0] * SIZE[1]
BOUND = 48


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, for as long as they live."""

    def __init__(self):
        super().__init__()
        self.known, self.now, self.peak = set(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for t in tree_leaves((args, kwargs)):  # what was there before
            if isinstance(t, torch.Tensor):
                self.known.add(t.untyped_storage()._cdata)
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                self._note(t.untyped_storage())
        return out

    def _note(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key, size):
        self.known.discard(key)
        self.now -= size


def test_live():
    with Live() as live:
        a = torch.zeros(1000)
        assert live.now == 4000
        b = a + 1
        c = a[5:]
        del a
        print(live.now, live.peak)
        del c
        print(live.now, live.peak)
        b.add_(1)
        del b
        print(live.now)
