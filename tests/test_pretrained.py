"""Packed files that come with the library, and those that runs left: ``csq.pretrained`` and ``csq-mini pack``."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

import csq_mini as csq
from csq_mini.cli import main
from csq_mini.experiments import pretrained
from csq_mini.experiments.rows import read_row, write_row

BOOK = Path(__file__).resolve().parents[1] / "book/results/rows"
NAMES = [f"resnet20-cifar10-{bits}bit" for bits in (2, 3, 4)]
RECIPE = csq.recipes.get("digits", search_epochs=1, finetune_epochs=1)


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_networks_are_those_of_their_rows(name):
    model = csq.pretrained(name)
    row = model.csq_row
    assert row == pretrained.row(name) == read_row(BOOK / f"{row.key}.json") and 0.9 < row.accuracy < 1
    report = csq.report(model)
    assert {layer.name: layer.planes for layer in report.rows} == row.scheme
    assert report.total.paper_bits == pytest.approx(row.paper_bits) and report.total.paper_bits <= row.target
    assert not model.training and model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_every_file_of_weights_is_sound():
    assert pretrained.names() == NAMES
    for name in NAMES:
        assert csq.verify_packed(pretrained.WEIGHTS / f"{name}.safetensors").layers


def test_the_older_name_still_loads_and_an_unknown_one_is_refused():
    assert csq.models.pretrained is csq.pretrained
    with pytest.raises(ValueError, match="unknown trained network 'resnet20-cifar10-5bit'; did you mean .*4bit"):
        csq.pretrained("resnet20-cifar10-5bit")


def test_a_pretrained_network_judges_real_photographs(cifar10_root):
    data = csq.data.cifar10(cifar10_root, limit=500)
    accuracy = csq.evaluate(csq.pretrained("resnet20-cifar10-3bit"), data)
    assert accuracy > 0.85


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run folder, and the model that the run returned."""
    folder = tmp_path_factory.mktemp("runs") / "digits-w2.5"  # a name with a dot, as results have
    torch.manual_seed(0)
    data = csq.data.digits()
    result = csq.fit(csq.models.digits_cnn(), data, RECIPE, run_dir=folder, progress=False, device="cpu")
    return folder, result


def test_a_finished_run_is_packed_inspected_and_verified(run, tmp_path, capsys):
    folder, result = run
    assert main(["pack", str(folder)]) == 0
    file, x = folder.with_name("digits-w2.5.safetensors"), torch.rand(3, 1, 8, 8)
    assert torch.equal(csq.load_packed(file)(x), result.model(x))
    csq.save_packed(result.model, tmp_path / "direct", RECIPE)
    assert (tmp_path / "direct").read_bytes() == file.read_bytes()
    assert f"{file.stat().st_size} bytes" in capsys.readouterr().out
    assert main(["verify", str(file)]) == 0 and "is sound" in capsys.readouterr().out
    assert main(["inspect", str(file)]) == 0 and "digits_cnn" in capsys.readouterr().out


def test_a_kept_row_is_packed_where_it_lies_or_elsewhere(run, tmp_path):
    folder, result = run
    key = "digits-w2.5"
    old = read_row(pretrained.WEIGHTS / f"{NAMES[0]}.json")
    write_row(tmp_path, dataclasses.replace(old, key=key), result.history)
    with pytest.raises(FileNotFoundError, match="digits-w2.5.json was not kept: delete the row and run it again"):
        pretrained.pack_run(tmp_path / f"{key}.json", tmp_path / "copy")
    kept = csq.save_packed(result.model, tmp_path / f"{key}.safetensors")
    before = (tmp_path / f"{key}.safetensors").read_bytes()
    assert pretrained.pack_run(tmp_path / f"{key}.json", tmp_path / "copy") == kept
    assert main(["pack", str(tmp_path / f"{key}.json")]) == 0
    assert (tmp_path / f"{key}.safetensors").read_bytes() == (tmp_path / "copy").read_bytes() == before


def test_what_cannot_be_packed_is_named_and_nothing_is_written(run, tmp_path, capsys):
    row = read_row(pretrained.WEIGHTS / f"{NAMES[0]}.json")
    write_row(tmp_path, dataclasses.replace(row, key="float", scheme={}), run[1].history)
    old = tmp_path / "old"
    old.mkdir()
    (old / "run.json").write_text(json.dumps({"format": 2, "recipe": RECIPE.to_dict()}))
    (old / "result.json").write_text("{}")
    unquantized = tmp_path / "unquantized"
    unquantized.mkdir()
    (unquantized / "run.json").write_text(json.dumps({"format": 3, "recipe": RECIPE.replace(target=None).to_dict()}))
    (unquantized / "result.json").write_text("{}")
    cases = {"none": "no finished run", "none.json": "none.json", "float.json": "trained float weights",
             "old": "older version, which kept no packed file", "unquantized": "trained float weights"}  # fmt: skip
    for name, message in cases.items():
        assert main(["pack", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err, name
    assert not (tmp_path / "out").exists()


def test_names_of_packed_files_keep_all_of_the_runs_name(run, tmp_path, capsys, monkeypatch):
    names = ["w2.25-seed0", "w2.5-seed0", "a.json", "a"]  # of folders
    for name in names:
        shutil.copytree(run[0], tmp_path / name)
        assert main(["pack", str(tmp_path / name)]) == 0
    monkeypatch.chdir(tmp_path / "a")
    (tmp_path / "a.safetensors").unlink()
    assert main(["pack", "."]) == 0
    assert {file.name for file in tmp_path.glob("*.safetensors")} == {f"{name}.safetensors" for name in names}


DAMAGE = {
    "run.json": [b"", b"{", b"[]", b"7", b'{"recipe": 7}', b'{"recipe": {}}', b"[" * 9999, b"\xff\x00", None],
    "result.json": [None],
    "model.safetensors": [b"", b"x" * 99, None],
}


@pytest.mark.parametrize("file", DAMAGE)
def test_a_damaged_run_ends_in_one_line_of_the_command(file, run, tmp_path, capsys):
    for content in DAMAGE[file]:
        shutil.copytree(run[0], tmp_path / "run", dirs_exist_ok=True)
        (tmp_path / "run" / file).unlink() if content is None else (tmp_path / "run" / file).write_bytes(content)
        assert main(["pack", str(tmp_path / "run")]) == 2, content
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and file in err and "run" in err and not (tmp_path / "run.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"[" * 9999, b"\xff\x00", b'{"schema": 1}'])
def test_a_damaged_row_ends_in_one_line_of_the_command(content, tmp_path, capsys):
    (tmp_path / "row.json").write_bytes(content)
    assert main(["pack", str(tmp_path / "row.json")]) == 2
    assert re.search("csq-mini: .*row.json is not a row of results .*delete it and run", capsys.readouterr().err)


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_what_is_no_packed_file_ends_in_one_line_of_the_command(command, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("nothing at all")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "text", tmp_path / "none", "/dev/zero"):
        assert main([command, str(path)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and str(path) in err


def test_a_damaged_packed_file_is_not_copied(run, tmp_path, capsys):
    folder, _ = run
    there = (folder / "model.safetensors").read_bytes()
    try:
        (folder / "model.safetensors").write_bytes(there[:-3])
        assert main(["pack", str(folder), "--out", str(tmp_path / "out")]) == 2
    finally:
        (folder / "model.safetensors").write_bytes(there)
    assert "model.safetensors" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "other").write_bytes(b"nothing at all")
    assert main(["verify", str(tmp_path / "other")]) == 2 and "other" in capsys.readouterr().err
