"""What makes a run: anything that decides its result is told apart, alike in every process."""

import dataclasses
import functools
import os
import random
import runpy
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import conv_net, few_digits
from torch import nn

import csq_mini as csq
from csq_mini.data.dataset import CropFlip, Normalise
from csq_mini.train import identity
from csq_mini.train.identity import describe, describe_data, fingerprint

SMOOTHING = 0.1


def smooth(outputs, targets, by=0.1, *, weight=None):
    return F.cross_entropy(outputs, targets, weight, label_smoothing=by)


def by_global(outputs, targets):
    return [F.cross_entropy(outputs, targets, label_smoothing=SMOOTHING) for _ in range(1)][0]


def scaled(by):
    return lambda outputs, targets: by * smooth(outputs, targets)


@dataclasses.dataclass
class Scaled:
    by: float

    def __call__(self, outputs, targets):
        return self.by * smooth(outputs, targets)

    def halved(self, outputs, targets):
        return self(outputs, targets) / 2


class Slotted:
    __slots__ = ("by",)

    def __init__(self, by):
        self.by = by


class Circle:
    def __init__(self):
        self.itself = self


a, b = (lambda outputs, targets: F.mse_loss(outputs, targets)), (lambda outputs, targets: F.l1_loss(outputs, targets))
TOLD_APART = {
    "lambdas on one line": [a, b],
    "arguments of a lambda": [lambda o, y: o, lambda y, o: o],
    "closures": [scaled(1), scaled(2)],
    "closures over tensors": [scaled(torch.ones(3)), scaled(torch.zeros(3))],
    "partials": [functools.partial(smooth, by=k) for k in (0.1, 0.2)],
    "losses with state": [nn.CrossEntropyLoss(label_smoothing=k) for k in (0.1, 0.2)],
    "losses with tensors": [nn.CrossEntropyLoss(weight=w) for w in (torch.ones(3), torch.zeros(3), None)],
    "objects": [Scaled(1), Scaled(2), Scaled(1).halved, Scaled(2).halved, Slotted(1), Slotted(2)],
    "functions of torch": [F.cross_entropy, F.nll_loss, torch.neg, torch.abs, torch.Tensor.abs],
    "augmentation": [CropFlip(8), CropFlip(8, pad=1), Normalise((0.1,), (0.2,)), Normalise((0.1,), (0.3,))],
    "code without a source": [eval("lambda o, y: o + 1"), eval("lambda o, y: o + 2"), eval("lambda o, y: y + 1")],
    "plain values": [1, 1.0, "1", (1,), {1}, {1: 1}, None, np.ones(1), np.zeros(1),
                     np.array(["a", None]), np.array(["b", None]), np.array("a"), torch.zeros(1)],
    "models": [nn.Sequential(nn.Dropout(0.1)), nn.Sequential(nn.Dropout(0.2)), nn.Sequential(nn.ReLU())],
}  # fmt: skip


@pytest.mark.parametrize("kind", TOLD_APART)
def test_things_that_differ_are_told_apart(kind):
    assert len(set(map(describe, TOLD_APART[kind]))) == len(TOLD_APART[kind])


def test_equal_things_are_equal():
    for first, second in ((scaled(2), scaled(2)), (Scaled(1), Scaled(1)), (Circle(), Circle()),
                          (nn.CrossEntropyLoss(), nn.CrossEntropyLoss()), (CropFlip(8, 1), CropFlip(8, pad=1)),
                          (random.Random(1), random.Random(2))):  # fmt: skip
        assert describe(first) == describe(second)


def test_what_a_function_reads_is_part_of_it(monkeypatch):
    before = describe(by_global), describe(smooth)
    monkeypatch.setattr(smooth, "__defaults__", (0.3,))
    monkeypatch.setitem(globals(), "SMOOTHING", 0.3)
    assert describe(by_global) != before[0] and describe(smooth) != before[1]
    monkeypatch.setattr(smooth, "__defaults__", (0.1,))
    monkeypatch.setattr(smooth, "__kwdefaults__", {"weight": 1})
    assert describe(smooth) != before[1]


def test_an_identity_of_ones_own_stands_for_all():
    first, second = scaled(1), scaled(2)
    first.csq_identity = second.csq_identity = "mine, version 1"
    assert describe(first) == describe(second) == "mine, version 1"


def test_every_process_says_the_same(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(textwrap.dedent("""
        import torch.nn as nn, torch.nn.functional as F
        from csq_mini.train.identity import describe, fingerprint
        kinds = {"mse", "l1", "huber"}
        class Net(nn.Linear):
            def forward(self, x, kinds=frozenset(kinds)): return super().forward(x)
        def loss(o, y): return sum(getattr(F, k + "_loss")(o, y) for k in kinds)
        net = Net(1, 1); nn.init.ones_(net.weight); nn.init.ones_(net.bias)
        print(describe(loss), describe(lambda o, y: o), fingerprint(net), describe(nn.CrossEntropyLoss()))
    """))
    runpy.run_path(str(tmp_path / "mine.py"), run_name="__main__")
    here, seed = capsys.readouterr().out, "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    there = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONHASHSEED": seed}).stdout  # fmt: skip
    assert here == there and there.count("\n") == 1


def test_a_fingerprint_tells_code_shapes_and_weights_apart():
    class Other(nn.Linear):
        def forward(self, x):
            return super().forward(x).relu()

    torch.manual_seed(0)
    net, other = nn.Linear(4, 4), Other(4, 4)
    other.load_state_dict(net.state_dict())
    assert len({fingerprint(m) for m in (net, other, nn.Linear(4, 4), nn.Linear(4, 3), conv_net())}) == 5
    before = fingerprint(net)
    assert before.startswith("Linear ") and fingerprint(net.eval()) == before  # all the same
    assert fingerprint(net.requires_grad_(False)) != before
    parts = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = fingerprint(parts)
    parts[1].eval()
    assert fingerprint(parts) != before


def test_every_image_and_target_counts(monkeypatch):
    data = few_digits()
    same = describe_data(data)
    assert same.startswith("few digits, 128 + 40 + 50, sha256 ")

    def changed(split, part, place=-1):
        t = getattr(data, split)[part]
        t[place] += 1
        said = describe_data(data)
        t[place] -= 1
        return said

    every = [changed(split, part) for split in ("train", "valid", "test") for part in (0, 1)]
    assert len({same, *every}) == 7 and describe_data(data) == same
    monkeypatch.setattr(identity, "MOST", 128 * 256 // 8)
    sampled = describe_data(data)
    assert sampled.endswith(" of every 8th input") and changed("train", 0, 1) == sampled
    assert len({sampled, changed("train", 0, 8), changed("train", 1, 1)}) == 3


def test_the_layout_in_memory_and_the_device_are_no_part_of_the_data():
    x, y = torch.randint(0, 256, (9, 3, 4, 4), dtype=torch.uint8), torch.arange(9)
    layouts = [x, x.contiguous(memory_format=torch.channels_last), x.flip(0).flip(0)]
    assert len({describe_data(csq.data.Data("d", (t, y), (t, y), (t, y))) for t in layouts}) == 1


def test_functions_that_call_each_other_are_told_once():
    names = [f"f{i}" for i in range(20)]
    text = "".join(f"def {name}(x): return {' + '.join(f'{other}(x)' for other in names)}\n" for name in names)
    mine: dict = {"__name__": "mine"}
    exec(text, mine)
    first = describe(mine["f0"])
    exec(text.replace("def f19(x): return ", "def f19(x): return 1 + "), mine)
    assert describe(mine["f0"]) != first


def test_compiled_parts_are_what_they_were():
    block = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    wrapper, function = nn.Module(), scaled(1)  # as torch.compile makes them, which takes seconds to import
    wrapper._orig_mod, function._torchdynamo_orig_callable = block, smooth
    assert fingerprint(nn.Sequential(wrapper)) == fingerprint(nn.Sequential(block))
    assert identity._digest(function) == identity._digest(smooth)
