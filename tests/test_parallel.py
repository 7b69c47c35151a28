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
from csq_mini.train import processes as parallel

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
        with parallel.join("cpu"):
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
    wrapper, (x, y) = parallel.wrap(model).train(), parallel.share((x, y))
    (F.cross_entropy(wrapper(x), y) + budget.penalty()).backward()
    plain = parallel.alone(model)
    state = {k: v.clone() for k, v in plain.state_dict().items()}
    return {k: v.grad.tolist() for k, v in model.named_parameters()}, {k: v.tolist() for k, v in state.items()}


def test_gradients_and_statistics_are_those_of_the_whole_batch(processes, port):
    x, y = few_digits().train
    x, y = x[:24].double(), y[:24]
    expected = net()
    budget = csq.Budget(expected, 2.0)
    csq.set_temperature(expected, 2.0)
    (F.cross_entropy(expected.train()(x), y) + budget.penalty()).backward()
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


def test_alone_nothing_changes():
    model, batch = conv_net(), (torch.zeros(3, 1), torch.zeros(3))
    assert parallel.rank() == 0 and parallel.processes() == 1
    assert parallel.wrap(model) is model and parallel.alone(model) is model
    assert all(a is b or torch.equal(a, b) for a, b in zip(parallel.share(batch), batch))
    assert float(parallel.mean_(torch.tensor(3.0))) == 3.0
    with parallel.join("cpu") as device:
        assert device == torch.device("cpu") and not dist.is_initialized()
    with parallel.join() as device:
        assert device is None


def test_wrapping_goes_back_to_the_very_same_classes():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm2d(4, affine=False)), nn.Linear(2, 2))
    kinds = [type(m) for m in model.modules()]
    for module in (model[0], model[1][0]):
        parallel.sync(module)
    assert isinstance(model[0], parallel.SyncNorm) and isinstance(copy.deepcopy(model)[1][0], parallel.SyncNorm)
    assert [type(m) for m in parallel.alone(model).modules()] == kinds


def shell(folder, *before):
    command = [*before, "-m", "csq_mini.cli", "train", "digits", "--run-dir", str(folder), "--quiet", "--device", "cpu",
               "--set", "search_epochs=1", "--set", "finetune_epochs=1", "--target", "3"]  # fmt: skip
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=one_thread)
    assert done.returncode == 0, done.stderr
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return done.stdout, history, torch.load(folder / "model.pt", weights_only=True)


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
