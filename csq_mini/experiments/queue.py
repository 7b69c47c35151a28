"""Many reproductions on one machine: in order of worth, several side by side, stopped after so many minutes."""

import inspect
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..check import number, unknown, whole
from ..files import read_json
from .plans import plan
from .reproduce import reproduce

Job = Mapping[str, Any]  # arguments of reproduce()
USUAL = {"model": "resnet20", "data": "cifar10", "target": 2.0, "seed": 0, "profile": "smoke"}
OPTIONAL = ("activation_bits", "epochs", "changes")  # of plan()


def read_jobs(file: str | Path) -> list[Job]:
    """The jobs in a JSON file, a list of arguments of :func:`csq_mini.reproduce`, each checked; ValueError if not."""
    jobs = read_json(Path(file))
    if not isinstance(jobs, list) or not jobs or not all(isinstance(job, dict) and "method" in job for job in jobs):
        raise ValueError(f'{file} must hold a list of jobs, such as [{{"method": "csq", "target": 2.0, "seed": 0}}]')
    for job in jobs:
        for name in set(job) - set(inspect.signature(reproduce).parameters):
            raise ValueError(unknown("argument", name, inspect.signature(reproduce).parameters))
        known = {**USUAL, **{name: job[name] for name in (*USUAL, *OPTIONAL) if name in job}}
        plan(job["method"], **known)
    return jobs


def words(job: Job) -> list[str]:
    """The arguments of ``csq-mini reproduce`` that stand for a job."""
    options = [["--" + name.replace("_", "-"), *([] if value is True else [str(value)])] for name, value in job.items()
               if name not in ("method", "changes") and value is not None and value is not False]  # fmt: skip
    options += [["--set", f"{name}={value}"] for name, value in job.get("changes", {}).items()]
    return [str(job["method"]), *(word for option in options for word in option)]


def run_queue(jobs: Sequence[Job], side_by_side: int = 1, minutes: float = 9.0, logs: str | Path = "runs") -> list[Job]:
    """Run jobs, the first ones first, and return those that are left: failed, stopped, or not begun.

    Args:
        jobs: arguments of :func:`csq_mini.reproduce`, which reads a row that is there back in a moment.
        side_by_side: processes at a time.
        minutes: after which all that runs is stopped; each goes on from its last checkpoint at the next call.
        logs: folder for what each process says.
    """
    side_by_side, end = whole("jobs", side_by_side, 1), time.monotonic() + 60 * number("minutes", minutes)
    waiting, left = list(enumerate(jobs)), dict(enumerate(jobs))
    running: dict[int, subprocess.Popen[bytes]] = {}
    try:
        while (waiting or running) and time.monotonic() < end:
            while waiting and len(running) < side_by_side:
                k, job = waiting.pop(0)
                running[k] = _start(k, job, Path(logs))
            time.sleep(0.1)
            for k in [k for k, process in running.items() if process.poll() is not None]:
                if running.pop(k).returncode == 0:
                    del left[k]
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return list(left.values())


def _start(k: int, job: Job, logs: Path) -> subprocess.Popen[bytes]:
    """The process of the job at place k, which writes queue-<k>.log."""
    logs.mkdir(parents=True, exist_ok=True)
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    command = [sys.executable, "-m", "csq_mini.cli", "reproduce", *words(job), "--quiet"]
    with open(logs / f"queue-{k}.log", "w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)
