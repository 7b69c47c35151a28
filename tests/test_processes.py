"""Training by several processes: the same numbers as one process, up to the order of sums."""

import copy
import json
import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import conv_net, converted, few_digits, mlp, shake
from torch import nn

import csq_mini as csq
from csq_mini.train.processes import count, join, mean_, rank, share, sync, unsync, wait, wrap

RECIPE = csq.Recipe(target=3.0, search_epochs=2, finetune_epochs=1, batch_size=32, recalibration_batches=1)


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_two(processes, port, work, *args):
    """What ``work(rank, *args)`` returns in each of two processes joined by gloo."""
    results = processes.Queue()
    started = [processes.Process(target=member, args=(rank, port, results, work, args)) for rank in range(2)]
    for process in started:
        process.start()
    found = dict(results.get(timeout=120) for _ in started)
    for process in started:
        process.join(30)
    for value in found.values():
        if isinstance(value, Exception):
            raise value
    return [found[rank] for rank in range(2)]


def member(rank, port, results, work, args):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank),
                   "LOCAL_RANK": str(rank)}  # fmt: skip
    try:
        with join("cpu"):
            value = work(rank, *args)
    except Exception as error:  # for the parent to raise
        value = error
    results.put((rank, value))


def net():
    torch.manual_seed(0)
    return shake(converted(conv_net())).double()


def gradients(rank, x, y):
    model = net()
    budget = csq.Budget(model, 2.0)
    csq.set_temperature(model, 2.0)
    wrapper, part = wrap(model).train(), share(len(x))
    (F.cross_entropy(wrapper(x[part]), y[part]) + budget.penalty(0.5)).backward()
    wait()
    state = {k: v.clone() for k, v in unsync(model).state_dict().items()}
    return {k: v.grad.tolist() for k, v in model.named_parameters()}, {k: v.tolist() for k, v in state.items()}


def test_gradients_and_statistics_are_those_of_the_whole_batch(processes, port):
    x, y = few_digits().train
    x, y = x[:24].double(), y[:24]
    expected = net()
    budget = csq.Budget(expected, 2.0)
    csq.set_temperature(expected, 2.0)
    (F.cross_entropy(expected.train()(x), y) + budget.penalty(0.5)).backward()
    for grads, state in in_two(processes, port, gradients, x, y):
        assert list(grads) == [k for k, _ in expected.named_parameters()]
        for name, parameter in expected.named_parameters():
            found = torch.tensor(grads[name], dtype=torch.float64)
            torch.testing.assert_close(found, parameter.grad, rtol=1e-9, atol=1e-12)
        assert list(state) == list(expected.state_dict())
        for name, value in expected.state_dict().items():
            found = torch.tensor(state[name], dtype=value.dtype)
            torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-12)


def odd_batch(rank):
    csq.fit(mlp(), few_digits(), RECIPE.replace(batch_size=33), progress=False)


def test_a_batch_that_cannot_be_shared_equally_is_refused(processes, port):
    with pytest.raises(ValueError, match="batch of 33 images .* 2 processes: .* multiple of 2"):
        in_two(processes, port, odd_batch)


def test_a_process_on_its_own_changes_nothing():
    model = conv_net()
    assert (rank(), count(), share(33)) == (0, 1, slice(0, None, 1))
    assert wrap(model) is model and unsync(model) is model and "forward" not in vars(model[1])
    assert float(mean_(torch.tensor(3.0))) == 3.0 and wait() is None
    with join("cpu") as device:
        assert device == torch.device("cpu") and not dist.is_initialized()
    with join() as device:
        assert device is None


def test_shares_are_equal_and_make_up_the_batch(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    parts = []
    for number in range(3):
        monkeypatch.setattr(dist, "get_rank", lambda number=number: number)
        parts.append(list(range(12))[share(12)])
    assert [len(part) for part in parts] == [4, 4, 4] and sorted(sum(parts, [])) == list(range(12))
    with pytest.raises(ValueError, match="a batch of 13 images cannot be shared equally by 3 processes"):
        share(13)


NORMS = {
    "plain": nn.BatchNorm2d(4),
    "without affine": nn.BatchNorm2d(4, affine=False),
    "without statistics": nn.BatchNorm2d(4, track_running_stats=False),
    "averaging": nn.BatchNorm2d(4, momentum=None),
}


@pytest.mark.parametrize("kind", NORMS)
def test_a_synced_batch_norm_on_its_own_computes_what_a_plain_one_does(kind):
    plain = copy.deepcopy(NORMS[kind]).double()
    synced = copy.deepcopy(plain)
    sync(nn.Sequential(synced))
    for training in (True, True, False):
        x = torch.randn(6, 4, 3, 3, dtype=torch.float64)
        torch.testing.assert_close(synced.train(training)(x), plain.train(training)(x))
    assert list(synced.state_dict()) == list(plain.state_dict())
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(synced.state_dict()[key], value)


def test_unsync_leaves_other_methods_of_an_instance_alone():
    norm = nn.BatchNorm1d(3)
    norm.forward = own = lambda x: x
    assert unsync(nn.Sequential(norm))[0].forward is own


def test_unsync_gives_back_plain_batch_norm_in_copies_too():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm2d(4, affine=False)), nn.Linear(2, 2))
    before = [(type(m), sorted(vars(m))) for m in model.modules()]
    sync(model)
    copied = copy.deepcopy(model)
    for norm in (copied[0], copied[1][0]):
        assert norm.forward.__self__ is norm  # not the batch norm it was copied from
    for synced in (model, copied):
        assert [(type(m), sorted(vars(m))) for m in synced.modules()] != before
        assert [(type(m), sorted(vars(m))) for m in unsync(synced).modules()] == before


def shell(folder, *before):
    command = [*before, "-m", "csq_mini.cli", "train", "digits", "--run-dir", str(folder), "--quiet", "--device", "cpu",
               "--set", "search_epochs=1", "--set", "finetune_epochs=1", "--target", "3"]  # fmt: skip
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=one_thread)
    assert done.returncode == 0, done.stderr
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return done.stdout, history, csq.load_packed(folder / "model.safetensors").state_dict()


def test_torchrun_trains_what_one_process_trains(tmp_path):
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    said, history, state = shell(tmp_path / "two", *two)
    alone, expected, plain = shell(tmp_path / "one", sys.executable)
    assert said.count("accuracy on the test split") == alone.count("accuracy on the test split") == 1
    assert list(state) == list(plain) and all(a.shape == plain[k].shape for k, a in state.items())
    for row, other in zip(history, expected, strict=True):
        # Rounding differs in the last bit, and 45 steps of SGD at a high rate carry it further.
        assert row["step"] == other["step"] and row["loss"] == pytest.approx(other["loss"], rel=2e-2)
        assert row["bits"] == pytest.approx(other["bits"], abs=0.3)
