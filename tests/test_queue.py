"""Many reproductions side by side: done, skipped, stopped, failed and named."""

import json
from pathlib import Path

import pytest

from csq_mini import cli
from csq_mini.experiments.queue import read_jobs, run_queue, words

SMOKE = {"model": "digits_cnn", "data": "digits", "target": 3.0, "device": "cpu"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, *jobs):
    (folder / "jobs.json").write_text(json.dumps(jobs))
    return str(folder / "jobs.json")


def test_jobs_run_side_by_side_and_are_not_repeated_and_a_failed_one_is_named(folder, capsys):
    jobs = [{**SMOKE, "method": "csq", "seed": 0}, {**SMOKE, "method": "float", "seed": 1, "changes": {"lr": 0.01}},
            {**SMOKE, "method": "csq", "start": "nowhere.pt"}]  # fmt: skip
    assert cli.main(["queue", write(folder, *jobs), "--jobs", "3", "--results", "rows"]) == 1
    rows = sorted((folder / "rows").glob("*.json"))
    assert [file.stem for file in rows] == ["digits_cnn-digits-csq-w3-smoke-seed0",
                                            "digits_cnn-digits-float-smoke-lr0.01-seed1"]  # fmt: skip
    out = capsys.readouterr().out
    assert "2 of 3 jobs are done; left are:" in out and "--start nowhere.pt" in out
    assert "no checkpoint nowhere.pt" in (folder / "runs/queue-2.log").read_text()
    before = [file.stat().st_mtime_ns for file in rows]
    assert cli.main(["queue", write(folder, *jobs[:2]), "--jobs", "2", "--results", "rows"]) == 0
    assert [file.stat().st_mtime_ns for file in rows] == before


def test_when_the_time_is_up_all_that_runs_is_stopped(folder):
    jobs = [{**SMOKE, "method": "csq", "seed": seed, "epochs": 10_000} for seed in range(3)]
    assert run_queue(jobs, side_by_side=2, minutes=0.01) == jobs
    assert not (folder / "results").exists() and len(list((folder / "runs").glob("queue-*.log"))) == 2


@pytest.mark.parametrize("content, message", [
    ({"method": "csq"}, "must hold a list of jobs"),
    ([{"target": 2}], "must hold a list of jobs"),
    ([{"method": "csk"}], "unknown method 'csk'; did you mean csq"),
    ([{"method": "csq", "changes": {"lr": -1}}], "lr must be a finite number"),
    ([{"method": "csq", "tarjet": 2}], "unknown argument 'tarjet'; did you mean target"),
])  # fmt: skip
def test_a_wrong_job_is_named_before_anything_runs(content, message, folder):
    (folder / "jobs.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_jobs(folder / "jobs.json")


def test_every_argument_of_a_job_is_read_back_by_the_command_line():
    job = {**SMOKE, "method": "ste", "scheme": "random:17", "epochs": 3, "activation_bits": 4, "fold": 2, "keep": True}
    args = cli.parser().parse_args(["reproduce", *words({**job, "changes": {"lr": 0.01}})])
    assert all(getattr(args, name) == value for name, value in job.items()) and args.set == ["lr=0.01"]


def test_the_jobs_for_a_gpu_are_sound_and_in_order_of_worth():
    jobs = read_jobs(Path(__file__).resolve().parents[1] / "book/workflow/gpu.json")
    assert all(job["profile"] == "full" and job["seed"] in (0, 1, 2) for job in jobs)
    groups = [(job["model"], "activation_bits" in job) for job in jobs]
    assert list(dict.fromkeys(groups)) == [("resnet20", False), ("vgg19bn", False), ("resnet20", True)]
    assert groups == sorted(groups, key=[*dict.fromkeys(groups)].index)
    assert len({json.dumps(job, sort_keys=True) for job in jobs}) == len(jobs)
