"""Run folders: resumed bit for bit, written whole, and refused when they do not fit."""

import contextlib
import json
import os
import random
import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import conv_net, few_digits, mlp, same_history, same_state
from torch import nn

import csq_mini as csq
from csq_mini.train import run_folder as checkpoint
from csq_mini.files import write_json, write_whole
from csq_mini.train.run_folder import get_rng_state, set_rng_state

RECIPE = csq.Recipe(
    target=3.0, search_epochs=2, finetune_epochs=2, batch_size=32, checkpoint_steps=3, recalibration_batches=1
)


def noisy(x, generator):
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def network():
    """Batch norm, dropout and grouped convolutions: all that a resumed run must continue."""
    torch.manual_seed(0)
    model = conv_net()
    return model.insert(10, nn.Dropout(0.2))


def run(folder, model=None, recipe=RECIPE, data=None, **options):
    model = model or network()
    return csq.fit(model, data or few_digits(augment=noisy), recipe, run_dir=folder, progress=False, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder and result."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(folder)


def assert_same_end(folder, result, whole):
    there, expected = whole
    assert same_state(result.model, expected.model) and same_history(result.history, expected.history)
    assert result.accuracy == expected.accuracy and str(result.report) == str(expected.report)
    for name in ("result.json", "run.json"):
        assert (folder / name).read_bytes() == (there / name).read_bytes()
    assert same_state(torch.load(folder / "model.pt"), torch.load(there / "model.pt"))
    assert not list(folder.glob("*.partial"))


class Stop(Exception):
    pass


def stop_at(call, function):
    """``function``, which fails at its ``call``-th call as if the process had died there."""
    calls = iter(range(10**9))

    def stopping(*args):
        if next(calls) == call:
            raise Stop
        return function(*args)

    return stopping


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Resuming


@pytest.mark.parametrize("step", range(16))
def test_a_run_stopped_at_any_step_ends_bit_identically(step, tmp_path, whole):
    with pytest.raises(Stop):
        run(tmp_path, loss=stop_at(step, F.cross_entropy))
    assert_same_end(tmp_path, run(tmp_path), whole)


@pytest.mark.parametrize("call", [0, 3, 4, 7, 8])
def test_a_run_stopped_while_judging_ends_bit_identically(call, tmp_path, whole):
    with pytest.raises(Stop):
        run(tmp_path, metric=stop_at(call, csq.accuracy))
    assert_same_end(tmp_path, run(tmp_path), whole)


@pytest.mark.parametrize("call", range(0, 14, 2))
@pytest.mark.parametrize("cut", [0, 20])
def test_a_run_stopped_in_the_middle_of_a_file_ends_bit_identically(call, cut, tmp_path, whole, monkeypatch):
    def write_part(path, write):
        with open(path.with_name(path.name + ".partial"), "wb") as file:
            file.write(b"\0" * cut)
        raise Stop

    calls = iter(range(10**9))

    def stopping(path, write):
        return (write_part if next(calls) == call else write_whole)(path, write)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(checkpoint, "write_whole", stopping)
        run(tmp_path)
    assert_same_end(tmp_path, run(tmp_path), whole)


def test_a_run_stopped_again_and_again_ends_bit_identically(tmp_path, whole):
    for _ in range(12):
        with contextlib.suppress(Stop):
            run(tmp_path, loss=stop_at(4, F.cross_entropy))
    assert_same_end(tmp_path, run(tmp_path), whole)


@pytest.mark.parametrize("target, epochs", [(None, (2, 2)), (2.0, (0, 4)), (3.0, (4, 0))])
def test_float_uniform_and_unfinished_runs_resume_too(target, epochs, tmp_path):
    recipe = RECIPE.replace(target=target, search_epochs=epochs[0], finetune_epochs=epochs[1])
    expected = tmp_path / "whole", run(tmp_path / "whole", recipe=recipe)
    for step in (1, 5, 4):
        with pytest.raises(Stop):
            run(tmp_path / "run", recipe=recipe, loss=stop_at(step, F.cross_entropy))
    result = run(tmp_path / "run", recipe=recipe)
    assert same_state(result.model, expected[1].model) and same_history(result.history, expected[1].history)


KILLED = RECIPE.replace(search_epochs=6, finetune_epochs=6, checkpoint_steps=2)


def killed_worker(folder, ready):
    torch.set_num_threads(1)
    data = few_digits(augment=noisy)
    ready.set()
    run(folder, recipe=KILLED, data=data)


def test_a_run_killed_at_random_moments_ends_bit_identically(tmp_path, processes):
    start = time.perf_counter()
    expected = tmp_path / "whole", run(tmp_path / "whole", recipe=KILLED)
    length, folder, kills = time.perf_counter() - start, tmp_path / "run", 0
    chance = random.Random()
    for _ in range(6):
        ready = processes.Event()
        process = processes.Process(target=killed_worker, args=(folder, ready))
        process.start()
        assert ready.wait(60)
        process.join(chance.uniform(0, length / 2))
        process.kill()  # SIGKILL
        process.join()
        kills += process.exitcode == -9
        assert_whole(folder)
    assert kills >= 3
    assert_same_end(folder, run(folder, recipe=KILLED), expected)


def assert_whole(folder):
    """Whatever files a killed run left under their real names can be read to the end."""
    for path in folder.glob("*"):
        if path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            [json.loads(line) for line in path.read_text().splitlines()]
        else:
            assert path.suffix == ".partial" or path.name == ".lock"


def test_a_finished_run_is_read_back_without_training(whole):
    folder, expected = whole
    before = contents(folder)
    result = run(folder, loss=stop_at(0, F.cross_entropy))
    assert_same_end(folder, result, whole)
    assert contents(folder)["checkpoint.pt"] == before["checkpoint.pt"]


def test_a_run_s_folder_holds_what_its_result_says(whole):
    folder, result = whole
    assert set(contents(folder)) == {".lock", "run.json", "checkpoint.pt", "history.jsonl", "result.json", "model.pt"}
    said = json.loads((folder / "result.json").read_text())
    assert said["accuracy"] == result.accuracy and said["paper_bits"] == result.report.total.paper_bits <= 3.0
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert rows == result.history.to_dict("records")
    fresh = network()
    fresh.load_state_dict(torch.load(folder / "model.pt"))
    x = few_digits().test[0]
    assert torch.equal(fresh.eval()(x), result.model(x))


def test_a_run_with_a_folder_ends_like_one_without(whole):
    result = csq.fit(network(), few_digits(augment=noisy), RECIPE, progress=False)
    assert same_state(result.model, whole[1].model) and same_history(result.history, whole[1].history)


def test_tensorboard_gets_every_number_of_the_history(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = run(tmp_path, tensorboard=True)
    log = events.EventAccumulator(str(tmp_path)).Reload()
    numbers = result.history.drop(columns="phase")
    assert set(numbers) - {"epoch"} <= set(log.Tags()["scalars"])
    for name in ("loss", "hard", "bits", "bits/0"):
        values = [event.value for event in log.Scalars(name)]
        assert values == pytest.approx(numbers[name].tolist(), rel=1e-6)
        assert [event.step for event in log.Scalars(name)] == [1, 2, 3, 4]


def test_a_resumed_run_writes_each_event_once(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(Stop):
        run(tmp_path, tensorboard=True, loss=stop_at(10, F.cross_entropy))
    run(tmp_path, tensorboard=True)
    log = events.EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in log.Scalars("loss")] == [1, 2, 3, 4]


# Refusals: each leaves the folder as it was


def refuse(folder, message, error=ValueError, **options):
    before = contents(folder)
    with pytest.raises(error, match=message) as caught:
        run(folder, **options)
    assert contents(folder) == before
    return str(caught.value)


@pytest.fixture
def half(tmp_path):
    """A run that was stopped in its search."""
    folder = tmp_path / "half"
    with pytest.raises(Stop):
        run(folder, loss=stop_at(7, F.cross_entropy))
    return folder


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.7, 0.99, 0.9999])
def test_a_truncated_checkpoint_is_refused_with_a_way_out(part, half):
    file = half / "checkpoint.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    refuse(half, "checkpoint.pt is damaged.*delete it to start this run again, or give another run_dir")
    file.unlink()
    assert run(half).history["epoch"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("content", [{}, [1], {"format": 1}, {"format": 1, "phase": 0, "step": 3}, "text"])
def test_a_checkpoint_with_something_else_in_it_is_refused(content, half):
    torch.save(content, half / "checkpoint.pt")
    refuse(half, "checkpoint.pt")


def test_a_checkpoint_of_another_version_is_refused(half):
    file = half / "checkpoint.pt"
    content = torch.load(file)
    torch.save({**content, "run": {**content["run"], "format": 99}}, file)
    refuse(half, "holds a run of format 99.*reads 2.*another run_dir")


@pytest.mark.parametrize("other", ["model", "recipe", "weights"])
def test_a_checkpoint_file_of_another_run_is_refused(other, half, tmp_path):
    torch.manual_seed(7)
    options = {
        "model": {"model": mlp()},
        "recipe": {"recipe": RECIPE.replace(lr=0.01)},
        "weights": {"model": conv_net()},
    }[other]
    if other == "weights":
        options["model"].insert(10, nn.Dropout(0.2))
    with pytest.raises(Stop):
        run(tmp_path / "other", loss=stop_at(7, F.cross_entropy), **options)
    (half / "checkpoint.pt").write_bytes((tmp_path / "other/checkpoint.pt").read_bytes())
    refuse(half, "checkpoint.pt|another run")


@pytest.mark.parametrize("options, message", [
    ({"model": mlp()}, "another run: model is 'Sequential .*' there"),
    ({"recipe": RECIPE.replace(lr=0.2)}, "another run: lr is 0.1 there and 0.2 here.*another run_dir"),
    ({"recipe": RECIPE.replace(target=2.0, seed=3)}, "target is 3.0 there and 2.0 here; seed is 0 there and 3 here"),
    ({"recipe": RECIPE.replace(skip=("0",))}, r"skip is \[\] there and \['0'\] here"),
    ({"data": few_digits(train=64)}, "data is 'few digits, 128 .* there and 'few digits, 64"),
], ids=["model", "recipe", "two fields", "skip", "data"])  # fmt: skip
def test_a_folder_of_another_run_is_refused_with_the_difference(options, message, half):
    refuse(half, message, **options)


def test_a_model_with_other_weights_is_another_run(half):
    torch.manual_seed(9)
    refuse(half, "another run", model=conv_net().insert(10, nn.Dropout(0.2)))


def test_a_folder_of_another_version_is_refused(half):
    content = json.loads((half / "run.json").read_text())
    write_json(half / "run.json", {**content, "format": 99})
    refuse(half, "run of format 99.*reads 2")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "recipe": 5}', "\x00\xff"])
def test_a_damaged_run_file_is_refused(text, half):
    (half / "run.json").write_bytes(text.encode("latin1"))
    refuse(half, "run.json is damaged|holds a")


def test_a_folder_that_is_not_empty_and_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    refuse(tmp_path, "not empty and not a run.*empty or new folder")


@pytest.mark.parametrize("below", [".", "deeper/still"])
def test_a_file_in_the_way_is_refused(below, tmp_path):
    (tmp_path / "taken").write_text("a file")
    before = contents(tmp_path)
    with pytest.raises(OSError, match="cannot make the run folder .*taken.*another run_dir"):
        run(tmp_path / "taken" / below)
    assert contents(tmp_path) == before


@contextlib.contextmanager
def no_privilege():
    """Lay root's rights aside for a while: root may write anywhere."""
    if os.getuid():
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.skipif(not hasattr(os, "setresuid"), reason="permissions work otherwise here")
@pytest.mark.parametrize("below", ["", "new"])
def test_no_permission_to_write_is_said_and_nothing_is_left(below):
    run_options = {"model": network(), "data": few_digits()}
    with tempfile.TemporaryDirectory() as parent:
        locked = Path(parent) / "locked"
        locked.mkdir()
        locked.chmod(0o555)
        Path(parent).chmod(0o755)
        with (
            no_privilege(),
            pytest.raises(
                PermissionError, match="(no permission to write to|cannot make the run folder) .*locked.*run_dir"
            ),
        ):
            run(locked / below, **run_options)
        assert not list(locked.iterdir())
        locked.chmod(0o755)


def test_a_file_system_that_takes_no_folder_is_said():
    if not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    with pytest.raises(OSError, match="cannot make the run folder /proc/no-such/run.*run_dir"):
        run("/proc/no-such/run")


def test_tensorboard_missing_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install"):
        run(tmp_path / "run", tensorboard=True)


# The parts


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "f"
    write_whole(file, lambda f: f.write(b"first"))

    def fail(f):
        f.write(b"sec")
        raise Stop

    with pytest.raises(Stop):
        write_whole(file, fail)
    assert file.read_bytes() == b"first"
    write_json(tmp_path / "j", {"a": [1, None]})
    assert json.loads((tmp_path / "j").read_text()) == {"a": [1, None]}


def test_random_numbers_go_on_where_they_were_taken(tmp_path):
    import numpy as np

    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]

    np.random.randn(), random.gauss(0, 1)  # leaves half a pair behind in each
    torch.save(get_rng_state(), tmp_path / "rng.pt")
    first = draw(), np.random.randn(), random.gauss(0, 1)
    draw()
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert (draw(), np.random.randn(), random.gauss(0, 1)) == first


def test_two_runs_cannot_share_a_folder(tmp_path):
    folder, refused = tmp_path / "run", []

    def second(outputs, targets):
        if not refused:
            before = contents(folder)
            with pytest.raises(BlockingIOError, match="another run is using .*run: wait for it, or give another"):
                run(folder)
            refused.append(contents(folder) == before)
        return F.cross_entropy(outputs, targets)

    run(folder, loss=second)
    assert refused == [True]
    run(folder)  # and afterwards it is free
