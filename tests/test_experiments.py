"""One run, one row: parameters in, a row out; repeated, resumed, and refused."""

import dataclasses
import hashlib
import json
import lzma
import math
import os
import re
from pathlib import Path

import pandas
import pytest
import torch
from conftest import same_state

import csq_mini as csq
from csq_mini.activations import activation_bits
from csq_mini.experiments import reproduce as experiments
from csq_mini.experiments.plans import METHODS, PARTS, PROFILES, SETUPS, plan
from csq_mini.experiments.reproduce import read_state
from csq_mini.experiments.rows import Row, commit, load_history, load_rows, read_row, where, write_row
from csq_mini.files import write_state
from csq_mini.train.identity import describe

BOOK = Path(__file__).resolve().parents[1] / "book/results/rows"
DIGITS = {"model": "digits_cnn", "data": "digits", "target": 3.0, "progress": False, "device": "cpu"}


def digits(folder, method="csq", **changes):
    return csq.reproduce(method, **{**DIGITS, "results": folder / "rows", "run_dir": folder / "run", **changes})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    return folder, digits(folder, keep=True)


def test_a_row_says_what_was_run_and_what_it_came_to(done):
    folder, row = done
    file = folder / "rows" / f"{row.key}.json"
    assert row.key == "digits_cnn-digits-csq-w3-smoke-seed0" and read_row(file) == row
    assert (row.method, row.model, row.data, row.target, row.seed) == ("csq", "digits_cnn", "digits", 3.0, 0)
    assert 0 < row.paper_bits <= 3.0 and 0 < row.stored_bits <= 9 and row.bytes < row.original_bytes
    assert row.search_epochs == 2 and row.finetune_epochs == 1 and row.recipe["search_epochs"] == 2
    assert row.start is row.start_accuracy is None and row.train_images == 1293 and row.test_images == 360
    assert set(row.hardware) == {"cpu", "threads", "load", "gpu"} and row.versions["torch"] == torch.__version__
    assert row.seconds > 0 and row.images_per_second > 0 and row.device == "cpu"
    assert len(row.scheme) == 8 and all(re.fullmatch("[1F.]{8}", planes) for planes in row.scheme.values())
    json.dumps(dataclasses.asdict(row), allow_nan=False)


def test_the_row_is_that_of_fit_itself(done):
    _, row = done
    recipe = plan("csq", "digits_cnn", "digits", 3.0, 0, "smoke")
    torch.manual_seed(0)
    result = csq.fit(csq.models.digits_cnn(), csq.data.digits(), recipe, progress=False, device="cpu")
    total = result.report.total
    assert row.accuracy == result.accuracy and row.paper_bits == total.paper_bits
    assert row.bytes == total.bytes + total.float_bytes and row.recipe == json.loads(json.dumps(recipe.to_dict()))
    table = result.history.drop(columns=["seconds", "images_per_second"]).to_csv(index=False)
    assert row.history_digest == hashlib.sha256(table.encode()).hexdigest()


def test_the_model_kept_beside_the_row_is_the_one_the_row_is_about(done):
    folder, row = done
    file = folder / "rows" / f"{row.key}.safetensors"
    assert csq.evaluate(csq.load_packed(file), csq.data.digits()) == row.accuracy
    assert file.read_bytes() == (folder / "run" / "model.safetensors").read_bytes()
    assert {name: layer.planes for name, layer in csq.verify_packed(file).layers.items()} == row.scheme


def test_a_float_model_is_kept_as_its_state(tmp_path):
    row = digits(tmp_path, "float", keep=True, epochs=1)
    model = csq.models.digits_cnn()
    model.load_state_dict(read_state(tmp_path / "rows" / f"{row.key}.pt"))
    assert csq.evaluate(model, csq.data.digits()) == row.accuracy
    assert row.paper_bits == 32 and row.bytes == row.original_bytes and row.scheme == {}


def test_the_history_beside_the_row_reads_back(done):
    folder, row = done
    history = load_history(row.key, folder / "rows")
    assert history["epoch"].tolist() == [1, 2, 3] and history["hard"].between(0, 1).all()
    assert row.images_per_second == pytest.approx(history["images_per_second"].median())


def test_what_is_done_is_not_run_again(done, monkeypatch):
    folder, row = done
    monkeypatch.setattr(experiments, "fit", lambda *a, **k: pytest.fail("trained again"))
    assert digits(folder) == row


def test_rows_go_to_the_folder_results_if_nothing_is_said(done, monkeypatch, tmp_path):
    folder, row = done
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").symlink_to(folder / "rows")
    monkeypatch.setattr(experiments, "fit", lambda *a, **k: pytest.fail("did not look into results"))
    assert csq.reproduce("csq", **DIGITS) == row


def test_what_was_done_with_another_recipe_or_start_is_run_again(tmp_path, done):
    folder, row = done
    rows_there = tmp_path / "rows"
    rows_there.mkdir()
    rare = dataclasses.replace(row, recipe={**row.recipe, "checkpoint_steps": 7})
    assert experiments._same_run(rare, plan("csq", "digits_cnn", "digits", 3.0, 0, "smoke"), None)
    old = dataclasses.replace(row, recipe={**row.recipe, "lr": 7.0})
    write_row(rows_there, old, pandas.DataFrame({"epoch": [1]}))
    again = digits(tmp_path)
    assert again.recipe == row.recipe and again.history_digest == row.history_digest
    started = digits(tmp_path, start=folder / "rows" / f"{row.key}.safetensors", run_dir=tmp_path / "other")
    assert started.start.startswith(f"{row.key}.safetensors, sha256 ") and started.start_accuracy == row.accuracy
    assert started.key == "digits_cnn-digits-pretrained-csq-w3-smoke-seed0"  # replaces no run from random weights
    assert read_row(rows_there / f"{started.key}.json") == started and read_row(rows_there / f"{row.key}.json") == again


def test_rows_older_than_a_field_say_what_it_was_then(done):
    row = done[1]
    new = {"masks", "optimizer", "hold"}
    old = dataclasses.replace(row, recipe={k: v for k, v in row.recipe.items() if k not in new})
    recipe = plan("csq", "digits_cnn", "digits", 3.0, 0, "smoke")
    assert not experiments._same_run(old, recipe, None)  # its masks were free,
    assert experiments._same_run(old, recipe.replace(masks="free"), None)
    for nothing_searched in ({"search_epochs": 0}, {"target": None}):  # which is all the same here
        other = dataclasses.replace(old, recipe={**old.recipe, **nothing_searched})
        assert experiments._same_run(other, recipe.replace(**nothing_searched), None)


def test_a_recipe_that_holds_trained_weights_wants_some(tmp_path):
    with pytest.raises(ValueError, match="holds the weights of a trained network.*give start="):
        csq.reproduce("csq", "digits_cnn", "digits", 3.0, profile="held", results=tmp_path, device="cpu")
    assert not [*tmp_path.iterdir()]


def test_a_run_that_was_cut_goes_on_and_ends_in_the_same_row(tmp_path, done, monkeypatch):
    class Cut(Exception):
        pass

    def cut(model, data, recipe, **options):
        def stop(outputs, targets, count=[0]):  # noqa: B006 - counts over calls
            count[0] += 1
            if count[0] > 45:
                raise Cut
            return torch.nn.functional.cross_entropy(outputs, targets)

        stop.csq_identity = describe(torch.nn.functional.cross_entropy)  # to the run folder it is the same
        return csq.fit(model, data, recipe, loss=stop, **options)

    monkeypatch.setattr(experiments, "fit", cut)
    with pytest.raises(Cut):
        digits(tmp_path)
    assert (tmp_path / "run" / "checkpoint.pt").exists() and not (tmp_path / "rows").exists()
    monkeypatch.undo()
    row = digits(tmp_path)
    assert (row.history_digest, row.accuracy) == (done[1].history_digest, done[1].accuracy)


def test_every_method_changes_the_recipe_as_it_says():
    def of(method):
        return plan(method, "resnet20", "cifar10", 2.0, 0, "full")

    whole = of("csq")
    assert whole == csq.recipes.get("resnet20-cifar10", target=2.0)
    changed = {
        name: {f.name for f in dataclasses.fields(whole) if getattr(of(name), f.name) != getattr(whole, f.name)}
        for name in PARTS
    }
    epochs = {"search_epochs", "finetune_epochs"}
    assert changed == {
        "csq": set(), "float": {"target"}, "no-masks": epochs, "no-finetune": epochs, "one-rate": {"one_rate"},
        "free-masks": {"masks"}, "no-growth": {"growth"}, "unweighted": {"weighted"},
        "no-recalibration": {"recalibration_batches"},
    }  # fmt: skip
    assert len({of(name).search_epochs + of(name).finetune_epochs for name in PARTS}) == 1  # all train as long
    assert of("no-masks").search_epochs == of("no-finetune").finetune_epochs == 0


def test_every_method_runs_and_quantizes_as_it_should(tmp_path):
    found = {name: digits(tmp_path, name, run_dir=tmp_path / name, target=2.0) for name in PARTS}
    assert found["float"].paper_bits == 32.0 and found["float"].scheme == {} and found["float"].target is None
    assert all(row.paper_bits <= 2.0 for name, row in found.items() if name != "float")
    assert {8 - planes.count(".") for planes in found["no-masks"].scheme.values()} == {2}
    assert len({row.history_digest for row in found.values()}) == len(PARTS)
    table = load_rows(tmp_path / "rows")
    assert sorted(table["method"]) == sorted(PARTS) and list(table) == [f.name for f in dataclasses.fields(Row)]


def test_activation_bits_are_in_the_model_and_in_the_key(tmp_path):
    row = digits(tmp_path, activation_bits=3)
    assert row.key == "digits_cnn-digits-csq-w3-a3-smoke-seed0" and row.activation_bits == 3
    model = csq.load_packed(tmp_path / "run" / "model.safetensors")
    assert csq.evaluate(model, csq.data.digits()) == row.accuracy and set(activation_bits(model).values()) == {3}


def test_epochs_are_shared_as_the_recipe_shares_them():
    assert (plan("csq", "resnet20", "cifar10", 2, 0, "full", epochs=200).search_epochs) == 120
    recipe = plan("csq", "resnet20", "cifar10", 2, 0, "full", epochs=1)
    assert recipe.search_epochs + recipe.finetune_epochs == 1


def test_any_field_of_the_recipe_changes_and_shows_in_key_and_row(tmp_path, done):
    row = digits(tmp_path, changes={"lr": 0.01, "skip": ("fc",)})
    assert row.key == "digits_cnn-digits-csq-w3-smoke-lr0.01-skipfc-seed0" and row.recipe["lr"] == 0.01
    assert "fc" not in row.scheme and row.recipe["logit_lr"] == done[1].recipe["logit_lr"]
    assert digits(tmp_path, changes={"skip": ("fc",), "lr": 0.01}) == row  # read back: it is the same run


@pytest.mark.parametrize("changes, message", [
    ({"seed": 1}, "changes must not hold 'seed', which is an argument of its own: give seed=... instead"),
    ({"lr": -1}, "lr must be a finite number of at least 0, got -1"),
    ({"lrr": 1}, "unknown Recipe field 'lrr'; did you mean lr"),
])  # fmt: skip
def test_a_wrong_change_is_named_and_nothing_is_written(changes, message, tmp_path):
    with pytest.raises((ValueError, TypeError), match=message):
        digits(tmp_path, changes=changes)
    assert not list(tmp_path.iterdir())


def test_a_fold_is_another_test_set_with_a_row_of_its_own(tmp_path, done):
    row = digits(tmp_path, fold=4)
    assert row.key.endswith("-smoke-fold4-seed0") and row.fold == 4 and row.test_images == 359 != done[1].test_images
    with pytest.raises(ValueError, match="cifar10 has no folds, got fold=1: leave it out, or use digits or mnist"):
        csq.reproduce("csq", fold=1, results=tmp_path)
    with pytest.raises(ValueError, match="fold must be a whole number from 0 to 4, got 5"):
        digits(tmp_path, fold=5)


def test_every_setup_has_its_recipe_model_and_data():
    for name, (model, data) in SETUPS.items():
        assert csq.models.get(model) and csq.data.get(data) and csq.recipes.get(name)
    assert set(SETUPS) == set(csq.recipes.RECIPES)


def test_the_setting_of_the_paper_is_converted_as_documented():
    paper = csq.recipes.get("paper-resnet20")
    assert (paper.search_epochs + paper.finetune_epochs, paper.batch_size, paper.lr) == (600, 256, 0.1)
    assert (paper.weight_decay, paper.warmup_epochs, paper.beta_end, paper.planes) == (5e-4, 5, 200, 8)
    layers = 20  # that the official code quantizes; it pulls at the sum of all masks of all layers
    assert paper.strength == pytest.approx(0.01 / paper.planes * layers)


@pytest.mark.parametrize("changes, message", [
    ({"method": "csqq"}, "unknown method 'csqq'; did you mean csq"),
    ({"profile": "smok"}, "unknown profile 'smok'; did you mean smoke"),
    ({"model": "resnet21"}, "unknown model 'resnet21'; did you mean resnet20"),
    ({"data": "cifar"}, "unknown data set 'cifar'; did you mean cifar10"),
    ({"data": "cifar10"}, "no recipe for digits_cnn on cifar10; there are .*digits_cnn on digits"),
    ({"target": math.nan}, "target .*nan"), ({"target": 99.0}, "target 99.0 cannot be reached"),
    ({"seed": -1}, "seed .*-1"), ({"activation_bits": 9}, "activation.bits .*9"),
    ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
])  # fmt: skip
def test_bad_parameters_are_named_and_nothing_is_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        digits(tmp_path, **changes)
    assert not list(tmp_path.rglob("*.*"))


def test_a_profile_for_a_gpu_says_so_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'full' needs a GPU.*use profile 'cpu' or 'smoke'"):
        digits(tmp_path, profile="full")


def test_a_missing_or_damaged_or_foreign_start_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint .*gone.pt"):
        digits(tmp_path, start=tmp_path / "gone.pt")
    for name in ("bad.pt", "bad.pt.xz", "bad.safetensors"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(ValueError, match=rf"{re.escape(name)} is no \.\w+ file with a state_dict"):
            digits(tmp_path, start=tmp_path / name)
    torch.save(csq.models.digits_cnn(7).state_dict(), tmp_path / "seven.pt")
    with pytest.raises(ValueError, match="(?s)seven.pt does not fit digits_cnn.*fc.weight"):
        digits(tmp_path, start=tmp_path / "seven.pt")
    assert not (tmp_path / "run").exists() and not (tmp_path / "rows").exists()


def test_checkpoints_of_every_kind_are_read(tmp_path):
    from safetensors.torch import save_file

    state = csq.models.digits_cnn().state_dict()
    torch.save(state, tmp_path / "a.pt")
    (tmp_path / "a.pt.xz").write_bytes(lzma.compress((tmp_path / "a.pt").read_bytes()))
    save_file(state, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.pt.xz", "a.safetensors"):
        assert same_state(dict(sorted(read_state(tmp_path / name).items())), dict(sorted(state.items()))), name


def test_a_packed_file_is_a_checkpoint_too(done):
    folder, row = done
    file = folder / "rows" / f"{row.key}.safetensors"
    assert same_state(read_state(file), csq.load_packed(file).state_dict())


@pytest.mark.parametrize("below", ["", "deep/er"])
def test_a_folder_that_takes_no_rows_is_refused_before_any_training(below, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="no rows can be written to .*file.*: .*file is no folder; give another folder"):
        digits(tmp_path, results=tmp_path / "file" / below)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_bomb_is_not_unpacked(tmp_path):
    with lzma.open(tmp_path / "bomb.pt.xz", "wb", preset=0) as file:
        [file.write(bytes(2**22)) for _ in range(17)]
    with pytest.raises(ValueError, match=r"bomb.pt.xz is no .xz file .*it unpacks to more than 67108864 bytes"):
        read_state(tmp_path / "bomb.pt.xz")


def test_a_checkpoint_that_is_no_file_or_larger_than_any_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(FileNotFoundError, match="no checkpoint .*pipe.pt"):
        read_state(tmp_path / "pipe.pt")
    for name in ("sparse.pt", "sparse.safetensors", "sparse.pt.xz"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 2**41)
        with pytest.raises(ValueError, match=f"{name} is larger than a checkpoint can be"):
            digits(tmp_path, start=tmp_path / name)


def test_a_kept_float_model_is_read_only_as_it_was_written(tmp_path):
    write_state(tmp_path / "a.pt", csq.models.digits_cnn().state_dict())
    whole = (tmp_path / "a.pt").read_bytes()
    for place in range(7, len(whole) - 100, 9973):
        (tmp_path / "a.pt").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="a.pt is no .pt file.*do not match its sha-256"):
            read_state(tmp_path / "a.pt")


def test_a_row_and_its_table_are_read_only_as_they_were_written(done, tmp_path):
    folder, row = done
    file, table = tmp_path / f"{row.key}.json", tmp_path / f"{row.key}.csv"
    for name in (file.name, table.name):
        (tmp_path / name).write_bytes((folder / "rows" / name).read_bytes())
    assert set(json.loads(file.read_text())) - {f.name for f in dataclasses.fields(Row)} == {"digest", "table"}
    for path, read in ((file, lambda: read_row(file)), (table, lambda: load_history(row.key, tmp_path))):
        whole = path.read_bytes()
        for place in range(0, 8 * len(whole), 61):
            other = bytearray(whole)
            other[place // 8] ^= 1 << place % 8
            path.write_bytes(other)
            try:
                said = read()
                assert path == file and said == row  # a space that became another
            except ValueError as error:
                assert path.name in str(error)
        path.write_bytes(whole)
    assert read_row(file) == row and len(load_history(row.key, tmp_path)) == 3


def test_a_row_without_a_digest_is_read_as_it_is(done, tmp_path):
    content = dataclasses.asdict(done[1])
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert read_row(tmp_path / "old.json") == done[1]
    (tmp_path / "old.json").write_text(json.dumps({**content, "digest": "0"}))
    with pytest.raises(ValueError, match="old.json is not a row of results .*do not match its digest"):
        read_row(tmp_path / "old.json")


def test_names_of_rows_tell_targets_and_starts_apart(tmp_path, done, monkeypatch):
    folder, row = done
    recipes = [plan("csq", "digits_cnn", "digits", t, 0, "smoke") for t in (2.0, 2.5, 2.0000001, 3)]
    keys = [experiments._key("csq", "digits_cnn", "digits", recipe, "smoke", None, None) for recipe in recipes]
    assert keys[0] == "digits_cnn-digits-csq-w2-smoke-seed0" and keys[3] == row.key and len(set(keys)) == 4
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(tmp_path / f"{seed}.pt")
        torch.save(csq.models.digits_cnn().state_dict(), states[-1])
    rows = [digits(tmp_path, start=state, epochs=1, run_dir=tmp_path / f"run{state.stem}") for state in states]
    assert rows[1].key == f"{rows[0].key}-{rows[1].start[-16:-8]}"
    monkeypatch.setattr(experiments, "fit", lambda *a, **k: pytest.fail("trained again"))
    assert [digits(tmp_path, start=state, epochs=1) for state in states] == rows


@pytest.mark.parametrize("content, message", [
    ("[" * 9999, "is not a row of results .*nested too deeply"), ("7", "is not a row of results"),
    ("{", "is not a row of results.*delete it"), ("[]", "is not a row of results"), ("{}", "is not a row of results"),
    ('{"schema": 99}', "has schema 99, this version reads 1: run it again"),
    ('{"schema": 1, "key": "k"}', "is not a row of results.*missing"),
])  # fmt: skip
def test_a_row_of_another_schema_or_none_is_refused_by_name(content, message, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=f"x.json {message}"):
        load_rows(tmp_path)


def test_no_rows_are_an_empty_table_with_all_columns(tmp_path):
    assert list(load_rows(tmp_path)) == [f.name for f in dataclasses.fields(Row)] and load_rows(tmp_path).empty


def test_every_row_in_the_book_can_be_read_and_names_its_start_by_digest():
    table = load_rows(BOOK)
    assert len(table) and table["accuracy"].between(0, 1).all() and not table["key"].duplicated().any()
    assert table["start"].dropna().str.fullmatch(r"[\w.-]+, sha256 [0-9a-f]{16}").all()
    assert set(table["method"]) <= set(METHODS) and set(table["profile"]) <= set(PROFILES)
    assert not table["commit"].isna().any()


def test_every_row_in_the_book_was_made_by_the_recipe_as_it_is_now():
    for row in (read_row(file) for file in sorted(BOOK.glob("*.json"))):
        epochs = row.search_epochs + row.finetune_epochs if "epochs" in row.key else None
        recipe = plan(row.method, row.model, row.data, row.target or 2.0, row.seed, row.profile,
                      activation_bits=row.activation_bits, epochs=epochs)  # fmt: skip
        assert experiments._same_run(row, recipe, row.start), f"{row.key} is stale: run it again"


def test_real_images_train_and_keep_their_budget(cifar10_root, tmp_path, monkeypatch):
    monkeypatch.setitem(PROFILES, "smoke", dataclasses.replace(PROFILES["smoke"], images={"resnet20": 256}))
    row = csq.reproduce("csq", target=3.0, data_root=cifar10_root, results=tmp_path, run_dir=tmp_path / "run",
                        keep=True, progress=False, device="cpu")  # fmt: skip
    assert row.data == "cifar10" and row.train_images == 256 and row.paper_bits <= 3.0 and len(row.scheme) == 22
    assert (tmp_path / f"{row.key}.safetensors").stat().st_size < row.original_bytes / 5


def test_where_names_device_hardware_versions_and_commit():
    here = where("cpu")
    assert list(here) == ["device", "hardware", "versions", "commit"] and here["device"] == "cpu"
    assert here["hardware"]["cpu"] and here["hardware"]["gpu"] is None
    assert here["hardware"]["threads"] == torch.get_num_threads()
    assert here["versions"]["csq_mini"] == csq.__version__ and here["versions"]["torch"] == torch.__version__
    assert where()["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    json.dumps(here)


def test_the_commit_is_marked_where_the_code_was_changed_since(monkeypatch, tmp_path):
    git = tmp_path / "git"
    git.write_text('#!/bin/sh\ncase "$1" in rev-parse) echo 0123456789ab;; status) printf "$CHANGED";; esac\n')
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CHANGED", "")
    assert commit() == "0123456789ab"
    monkeypatch.setenv("CHANGED", " M cli.py")
    assert commit() == "0123456789ab+"
    git.write_text("#!/bin/sh\nexit 128\n")
    assert commit() is None
