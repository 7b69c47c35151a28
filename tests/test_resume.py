"""Runs that are stopped and resumed, at any step, in any file, by any signal: they end bit-identically."""

import contextlib
import json
import random
import time

import pytest
import torch
import torch.nn.functional as F
from conftest import few_digits, same_history, same_state
from stopped_runs import RECIPE, Stop, contents, network, noisy, run, stop_at

import csq_mini as csq
from csq_mini import files
from csq_mini.packed import save
from csq_mini.train import run_folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder and result."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(folder)


def assert_same_end(folder, result, whole):
    there, expected = whole
    assert same_state(result.model, expected.model) and same_history(result.history, expected.history)
    assert result.accuracy == expected.accuracy and str(result.report) == str(expected.report)
    for name in ("result.json", "run.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (there / name).read_bytes()
    assert not list(folder.glob("*.partial"))


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


@pytest.mark.parametrize("step", range(6, 11))
def test_a_run_with_a_checkpoint_a_step_resumes_across_the_freeze(step, tmp_path, whole):
    recipe = RECIPE.replace(checkpoint_steps=1)
    with pytest.raises(Stop):
        run(tmp_path, recipe=recipe, loss=stop_at(step, F.cross_entropy))
    saved = torch.load(tmp_path / "checkpoint.pt")
    assert saved["phase"] * 8 + saved["step"] == step
    result = run(tmp_path, recipe=recipe)
    assert same_state(result.model, whole[1].model) and same_history(result.history, whole[1].history)


def test_a_checkpoint_after_the_freeze_holds_the_kept_planes_alone(whole):
    state = torch.load(whole[0] / "checkpoint.pt")["model"]
    kept = {name: len(ints.planes) for name, ints in csq.integers(whole[1].model).items()}
    assert min(kept.values()) < 8
    for name, ints in csq.integers(whole[1].model).items():
        assert len(state[f"{name}.csq.p"]) == len(state[f"{name}.csq.n"]) == kept[name]
        assert state[f"{name}.csq.q"].ndim == 2 and (state[f"{name}.csq.mask"] > 0).sum() == len(ints.planes)


WRITES = 13
"""Files that the whole run writes: its run.json, a history an epoch, checkpoints, a model and a result."""


def counted_writes(write):
    """Every module that writes files calls this in place of ``write_whole``."""
    patch = pytest.MonkeyPatch()
    for module in (files, run_folder, save):
        patch.setattr(module, "write_whole", write)
    return patch


def test_the_number_of_files_that_a_run_writes_is_known(tmp_path):
    written, write = [], files.write_whole
    patch = counted_writes(lambda path, content: (written.append(path.name), write(path, content)))
    run(tmp_path)
    patch.undo()
    assert len(written) == WRITES and written[-2:] == ["model.safetensors", "result.json"]
    assert set(written) == set(contents(tmp_path)) - {".lock"}


@pytest.mark.parametrize("call", range(WRITES))
def test_a_run_stopped_in_the_middle_of_a_file_ends_bit_identically(call, tmp_path, whole):
    write, calls = files.write_whole, iter(range(10**9))

    def stopping(path, content):
        if next(calls) != call:
            return write(path, content)
        path.with_name(f".{path.name}.0123.partial").write_bytes(b"\0" * (call % 2 * 20))
        raise Stop

    patch = counted_writes(stopping)
    with pytest.raises(Stop):
        run(tmp_path)
    patch.undo()
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
        elif path.suffix == ".safetensors":
            csq.verify_packed(path)
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


def test_a_run_with_a_folder_ends_like_one_without(whole):
    result = csq.fit(network(), few_digits(augment=noisy), RECIPE, progress=False)
    assert same_state(result.model, whole[1].model) and same_history(result.history, whole[1].history)
