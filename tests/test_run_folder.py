"""Run folders: what they hold, when they are refused, and that a refusal leaves them as they were."""

import contextlib
import dataclasses
import json
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import conv_net, few_digits, mlp, same_state
from stopped_runs import RECIPE, Stop, contents, network, noisy, run, stop_at
from torch import nn

import csq_mini as csq
from csq_mini.files import write_json, write_state
from csq_mini.packed.save import recipe_digest
from csq_mini.train.identity import describe, identity
from csq_mini.train.run_folder import RunFolder, get_rng_state, set_rng_state


def test_a_runs_folder_holds_what_its_result_says(tmp_path):
    result = run(tmp_path)
    assert set(contents(tmp_path)) == {".lock", "run.json", "checkpoint.pt", "history.jsonl", "result.json",
                                       "model.safetensors"}  # fmt: skip
    said = json.loads((tmp_path / "result.json").read_text())
    assert said["accuracy"] == result.accuracy and said["paper_bits"] == result.report.total.paper_bits <= 3.0
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert rows == result.history.to_dict("records")
    again, x = csq.load_packed(tmp_path / "model.safetensors", network()), few_digits().test[0]
    assert torch.equal(again(x), result.model(x)) and str(csq.report(again)) == str(result.report)
    packed = csq.verify_packed(tmp_path / "model.safetensors")
    assert packed.recipe == recipe_digest(RECIPE)


def test_a_float_runs_folder_holds_its_weights(tmp_path):
    result = run(tmp_path, recipe=RECIPE.replace(target=None))
    assert "model.pt" in contents(tmp_path) and "model.safetensors" not in contents(tmp_path)
    fresh, x = network(), few_digits().test[0]
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(fresh.eval()(x), result.model(x))
    assert json.loads((tmp_path / "result.json").read_text()) == {"accuracy": result.accuracy}


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


@pytest.mark.parametrize("content", [{}, [1], {"format": 1}, {"format": 1, "phase": 0, "step": 3}, "text",
                                     {"run": 5}, {"run": {}}, {"run": {"format": 3}}])  # fmt: skip
def test_a_checkpoint_with_something_else_in_it_is_refused(content, half):
    write_state(half / "checkpoint.pt", content)
    refuse(half, "checkpoint.pt is damaged.*delete it|holds a run of format None")


def test_a_checkpoint_of_another_version_is_refused(half):
    file = half / "checkpoint.pt"
    content = torch.load(file)
    write_state(file, {**content, "run": {**content["run"], "format": 99}})
    refuse(half, "holds a run of format 99.*reads 4.*another run_dir")


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


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that is done, to be refused alone."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(folder)
    return folder


def brighter(data):
    return dataclasses.replace(data, train=(data.train[0] + 0.1, data.train[1]))


@pytest.mark.parametrize("options, message", [
    ({"data": brighter(few_digits(augment=noisy))}, "data is 'few digits, .* there and 'few digits, .* here"),
    ({"loss": nn.CrossEntropyLoss(label_smoothing=0.9)}, "loss is 'torch.nn.functional.cross_entropy .* there and 't"),
    ({"metric": lambda o, y: -F.cross_entropy(o, y)}, "metric is 'csq_mini.train.judge.accuracy .* there and 'te"),
    ({"data": few_digits()}, "augment is 'stopped_runs.noisy .* there and 'None' here"),
    ({"data": dataclasses.replace(few_digits(augment=noisy), prepare=torch.neg)}, "prepare is 'None' there and 'torch"),
    ({"model": network().append(nn.Dropout(0.0))}, "model is 'Sequential .*, code"),
], ids=["data", "loss", "metric", "augment", "prepare", "dropout"])  # fmt: skip
def test_other_data_or_functions_are_another_run(options, message, finished):
    refuse(finished, f"another run: {message}", **options)


def test_each_flipped_bit_of_a_checkpoint_is_refused(half):
    file, chance = half / "checkpoint.pt", random.Random(0)
    whole, folder = file.read_bytes(), folder_of(half)
    for _ in range(150):
        other, place = bytearray(whole), chance.randrange(8 * len(whole))
        other[place // 8] ^= 1 << place % 8
        file.write_bytes(other)
        with pytest.raises(ValueError, match="checkpoint.pt is damaged .*sha-256"):
            folder.load()
    file.write_bytes(whole)
    assert folder.load()["step"] == 6


def folder_of(path):
    """A run folder that is read alone."""
    known = identity(network(), few_digits(augment=noisy), F.cross_entropy, csq.accuracy)
    return RunFolder(path, known, RECIPE, torch.device("cpu"))


@pytest.mark.parametrize("part, other", [
    ("rng", {}), ("rng", 5), ("optimizer", {"state": 1}), ("optimizer", []), ("model", {"0.csq.mask": 1}),
    ("step", "7"), ("phase", 99), ("loss", None),
])  # fmt: skip
def test_a_checkpoint_with_parts_of_another_kind_is_damaged_and_nothing_else(part, other, half):
    file = half / "checkpoint.pt"
    write_state(file, {**torch.load(file), part: other})
    refuse(half, "checkpoint.pt is damaged .*delete it to start this run again, or give another run_dir")


def test_a_run_that_goes_on_with_other_threads_says_that_bits_may_differ(half, tmp_path):
    content = json.loads((half / "run.json").read_text())
    assert content["begun_with"]["torch"] == torch.__version__ and content["begun_with"]["threads"] == 1
    content["begun_with"] |= {"threads": 7, "torch": "2.0"}
    write_json(half / "run.json", content)
    with pytest.warns(UserWarning, match="torch 2.0 there and .* here; threads 7 there and 1 here.*bits .*may differ"):
        run(half)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(half)  # done: nothing is computed that could differ
        run(tmp_path / "new")


def test_what_a_killed_process_left_is_removed_by_the_run_that_goes_on(half):
    for name in ("checkpoint.pt.partial", ".checkpoint.pt.0123.partial"):
        (half / name).write_bytes(b"half a checkpoint")
    run(half)
    assert not list(half.glob("*.partial"))


@pytest.mark.parametrize("name", ["run.json", "checkpoint.pt"])
def test_a_pipe_in_place_of_a_file_is_refused_and_does_not_hang(name, half):
    (half / name).unlink()
    os.mkfifo(half / name)
    with pytest.raises((ValueError, OSError), match=f"{name} is .*"):
        run(half)


def test_a_run_in_bfloat16_is_another_run(tmp_path):
    for first in (False, True):
        folder = tmp_path / str(first)
        with pytest.raises(Stop):
            run(folder, loss=stop_at(1, F.cross_entropy), bfloat16=first)
        refuse(folder, f"bfloat16 is {first} there and {not first} here", bfloat16=not first)


def test_a_model_with_other_weights_is_another_run(half):
    torch.manual_seed(9)
    refuse(half, "another run", model=conv_net().insert(10, nn.Dropout(0.2)))


@pytest.mark.parametrize("version", [2, 3, 99])  # earlier ones, and one to come
def test_a_folder_of_another_version_is_refused(version, half):
    content = json.loads((half / "run.json").read_text())
    write_json(half / "run.json", {**content, "format": version})
    refuse(half, f"run of format {version}.*reads 4: give another run_dir")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "recipe": 5}', "\x00\xff",
                                  "[" * 9999, '{"format": 4, "recipe": {}, "begun_with": 7}'])  # fmt: skip
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


@pytest.mark.skipif(not hasattr(os, "setresuid"), reason="permissions work otherwise here")
def test_a_finished_run_is_read_back_where_nothing_can_be_written():
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        expected = run(folder)
        before = contents(folder)
        for path in folder.iterdir():
            path.chmod(0o444)
        folder.chmod(0o555), Path(parent).chmod(0o755)
        model, data = network(), few_digits(augment=noisy)
        with no_privilege():
            result = run(folder, model, data=data, loss=stop_at(0, F.cross_entropy))
        assert same_state(result.model, expected.model) and result.accuracy == expected.accuracy
        assert contents(folder) == before
        folder.chmod(0o755)


def test_a_file_system_that_takes_no_folder_is_said():
    if not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    with pytest.raises(OSError, match="cannot make the run folder /proc/no-such/run.*run_dir"):
        run("/proc/no-such/run")


def test_tensorboard_missing_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install"):
        run(tmp_path / "run", tensorboard=True)


# Random numbers, and two at once


def test_random_numbers_go_on_where_they_were_taken(tmp_path):
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
        if not refused and folder.exists():  # not when fit tries the loss, before it makes the folder
            before = contents(folder)
            with pytest.raises(BlockingIOError, match="another run is using .*run: wait for it, or give another"):
                run(folder)
            refused.append(contents(folder) == before)
        return F.cross_entropy(outputs, targets)

    second.csq_identity = describe(F.cross_entropy)
    run(folder, loss=second)
    assert refused == [True]
    run(folder)  # and afterwards it is free
