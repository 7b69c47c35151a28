"""The workflow of the claims: it runs, does nothing twice, makes again what is gone, and names what failed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import yaml
from made_up_rows import made_up

from csq_book import claims
from csq_mini.experiments.baselines.request import check_allocation
from csq_mini.experiments.plans import plan
from csq_mini.experiments.rows import write_row
from csq_mini.files import read_json

ROOT = Path(__file__).resolve().parents[2]
RUN = {"model": "digits_cnn", "data": "digits", "profile": "smoke", "epochs": 1}
TINY = {"results": "rows", "against": "planes+uniform", "tuning_seed": 9, "beds": {"tiny": {
    "run": RUN, "changes": {"logit_lr": None}, "folds": [0, 2], "targets": [2],
    "methods": ["planes+uniform", "ste+uniform"], "seeds": [0, 1], "tune": {"lr": [0.02]}}}}  # fmt: skip


def workflow(folder, config, *more):
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "-s", ROOT / "book/workflow/Snakefile", "--cores", "2",
               "--configfile", "config.yaml", *more]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_two_jobs_a_second_call_and_a_row_that_is_gone(tmp_path):
    pytest.importorskip("snakemake")
    code, said = workflow(tmp_path, TINY)
    assert code == 0, said
    lines = read_json(tmp_path / "rows/tiny.json")["settings"]
    assert [(line["method"], line["n"]) for line in lines] == [("planes+uniform", 4), ("ste+uniform", 4)]
    assert lines[0]["difference"]["mean"] == 0 and lines[1]["difference"]["n"] == 4
    table = pandas.read_csv(tmp_path / "rows/tiny.csv")
    assert [*zip(table["seed"], table["fold"])] == [(0, 0), (0, 2), (1, 0), (1, 2)] * 2
    for line, runs in zip(lines, (table[:4], table[4:])):
        assert line["changes"] == {"lr": 0.02} and set(runs["lr"]) == {0.02}
        assert line["mean"] == pytest.approx(runs["accuracy"].mean())
    assert "Nothing to be done" in workflow(tmp_path, TINY)[1]
    shutil.rmtree(tmp_path / "rows/tiny/2/ste+uniform/seed1")
    code, said = workflow(tmp_path, TINY, "--dry-run")
    assert code == 0 and re.findall(r"rule (\w+):", said) == ["seed", "compare", "all"]
    assert "output: rows/tiny/2/ste+uniform/seed1" in said


def test_a_run_that_fails_names_its_rule_and_its_log(tmp_path):
    pytest.importorskip("snakemake")
    bed = {**TINY["beds"]["tiny"], "methods": ["planes+uniform"], "run": {**RUN, "start": "nowhere.pt"},
           "tune": {"lr": [0.02, 0.03]}}  # fmt: skip
    code, said = workflow(tmp_path, {**TINY, "beds": {"tiny": bed}})
    log = "rows/tiny/2/planes+uniform/trial0.log"
    assert code == 1 and "Error in rule trial" in said and log in said
    assert "no checkpoint nowhere.pt" in (tmp_path / log).read_text()


@pytest.mark.parametrize(("tune", "number"), [({}, 0), ({"lr": [1]}, 0), ({"lr": [1, 2], "strength": [3, 4]}, 4)])
def test_trials_run_where_there_is_a_choice(tune, number, tmp_path):
    assert [*claims.tried({"tune": tune})] == [*range(number)]
    if not number:
        claims.choose({"tune": tune}, [], tmp_path / "rates.json")
        assert claims.rates(tmp_path / "rates.json") == {key: value for key, [value] in tune.items()}


def test_the_rate_that_is_best_over_all_validation_splits_is_taken(tmp_path):
    for lr, ends in ((0.1, [0.90, 0.96]), (0.3, [0.95, 0.95]), (1.0, [0.99, 0.2])):
        for fold, end in enumerate(ends):
            row = made_up("csq", 2.0, model="digits_cnn", data="digits", profile="bed", fold=fold, key=f"fold{fold}")
            write_row(tmp_path / str(lr), row, pandas.DataFrame({"hard": [1.0, end]}))
    folders = [tmp_path / str(lr) for lr in (0.1, 0.3, 1.0)]
    claims.choose({"tune": {"lr": [0.1, 0.3, 1.0]}}, folders, tmp_path / "rates.json")
    assert claims.rates(tmp_path / "rates.json") == {"lr": 0.3}
    assert [round(t["validation"], 3) for t in read_json(tmp_path / "rates.json")["tried"]] == [0.93, 0.95, 0.595]


def test_a_folder_that_lacks_a_fold_is_not_summed_up(tmp_path):
    row = made_up("csq", 2.0, model="digits_cnn", data="digits", profile="bed", fold=0, key="fold0")
    write_row(tmp_path / "csq/seed0", row, pandas.DataFrame({"hard": [1.0]}))
    bed, places = {"folds": [0, 1], "seeds": [0]}, {("2", "csq"): [str(tmp_path / "csq/seed0")]}
    with pytest.raises(ValueError, match="1 rows of csq at 2 bits, not 2 in each of 1 folders: delete .*csq, and run"):
        claims.compare(bed, "csq", places, str(tmp_path / "bed.csv"), str(tmp_path / "bed.json"))
    assert not (tmp_path / "bed.csv").exists() and not (tmp_path / "bed.json").exists()


def test_a_rate_with_which_training_diverges_loses(tmp_path, monkeypatch):
    bed, folder = {"run": RUN, "tune": {"lr": [1e30, 0.1]}}, tmp_path / "1e30"
    monkeypatch.chdir(tmp_path)
    claims.trial(bed, "2", "ste+uniform", 0, {"lr": 1e30}, str(folder), str(tmp_path / "log"))
    assert [file.name for file in folder.iterdir()] == ["diverged.txt"]
    assert "the loss became nan" in (tmp_path / "log").read_text()
    row = made_up("ste", 2.0, model="digits_cnn", data="digits", profile="bed", allocation="uniform", key="ste")
    write_row(tmp_path / "0.1", row, pandas.DataFrame({"hard": [0.1]}))
    claims.choose(bed, [folder, tmp_path / "0.1"], tmp_path / "rates.json")
    first, second = read_json(tmp_path / "rates.json")["tried"]
    assert claims.rates(tmp_path / "rates.json") == {"lr": 0.1} and first["diverged"] and not second["diverged"]


def test_every_run_of_the_config_is_one_that_reproduce_takes(tmp_path):
    config = yaml.safe_load((ROOT / "book/workflow/config.yaml").read_text())
    runs = [(bed, *setting) for bed in config["beds"].values() for setting in claims.settings(bed)]
    for bed, target, method in runs:
        known = {key: bed["run"][key] for key in ("model", "data", "profile", "epochs") if key in bed["run"]}
        scheme = method.partition("+")[2]
        for changes in claims.trials(bed):
            changes = {**bed.get("changes", {}), **changes}
            plan(method.partition("+")[0], target=float(target), seed=0, changes=changes, **known)
        check_allocation(method.partition("+")[0], scheme or None, bed["run"].get("start") and ROOT / "README.md")
        assert bed.get("against", config["against"]) in bed["methods"] and config["tuning_seed"] not in bed["seeds"]
