"""Runs the reproduction pages through papermill: ``make reproduce PROFILE=smoke``, or this file with the same words.

    PROFILE=smoke|cpu|full   how much is run; smoke if nothing is said
    PAGES="resnet20 vgg19bn" which pages; all if nothing is said
    JOBS=1                   how many seeds at a time; else as many as there is room for
    TARGETS="2 3"            and so on: any parameter of the pages, in place of what published.yml plans

Each page runs once a seed, in a process of its own; the notebook it leaves is
runs/reproductions/<page>-<profile>-seed<k>.ipynb. A run whose row is there is not repeated, and one that was cut goes
on from its last checkpoint. A page that fails does not stop the others; the exit code is then 1.
"""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import papermill
import torch
import yaml

from csq_book.results.verdicts import read_published
from csq_mini.check import unknown
from csq_mini.experiments.plans import PROFILES, plan

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "book" / "reproductions"
PLANNED = {"methods", "targets", "activations", "epochs"}  # who names one of them wants that, not the whole plan
SET_UP = {"PYTHON", "NEED_GB", "LOCK"}  # make's own, for .ci/setup


def words(kind):
    return lambda text: [kind(word) for word in text.replace(",", " ").split()]


READERS = {"str": str, "int": int, "list[str]": words(str), "list[int]": words(int), "list[float]": words(float)}


def from_make(environment):
    """The NAME=VALUE words of make's command line. They come by the environment, where no shell has touched them."""
    names = sorted(set(environment.get("FROM_MAKE", "").split()) - SET_UP)
    return [f"{name}={environment.get(name, '')}" for name in names]


def read_words(argv):
    """NAME=VALUE words as a dict, names in small letters."""
    pairs = [word.partition("=") for word in argv]
    for name, sign, _ in pairs:
        if not sign:
            raise ValueError(f"{name!r} is no NAME=VALUE, such as PROFILE=smoke or TARGETS='2 3'")
    return {name.lower(): value for name, _, value in pairs}


def read_parameters(page, given):
    """The given texts as values of the types that the page's ``parameters`` cell declares.

    Raises:
        ValueError: for a parameter that the page does not have, or a text that is not of its type.
    """
    known, values = papermill.inspect_notebook(page), {}
    for name, text in given.items():
        if name not in known:
            raise ValueError(f"page {page.stem}: {unknown('parameter', name, [*known, 'pages', 'jobs'])}")
        kind, about = known[name]["inferred_type_name"], known[name]["help"]
        try:
            values[name] = READERS[kind](text)
        except ValueError:
            raise ValueError(f"page {page.stem}: {name} must be {kind} ({about}), got {text!r}") from None
    return values


def find_jobs(given):
    """(name, page, parameters) of each process to run, checked: nothing has been started yet."""
    book, given = read_published(PAGES / "published.yml")["pages"], {"profile": "smoke", **given}
    names = given.pop("pages", "").split()
    for key in ("start", "folder"):  # pages run elsewhere
        given |= {key: str(Path(given[key]).expanduser().resolve())} if given.get(key) else {}
    if given.get("start") and not Path(given["start"]).is_file():
        raise FileNotFoundError(f"no checkpoint {given['start']}: give the path of a .safetensors, .pt or .pt.xz file")
    jobs = []
    for name in names or book:
        if name not in book:
            raise ValueError(unknown("page", name, book))
        page = PAGES / f"{name}.ipynb"
        values = read_parameters(page, given)
        if values["profile"] not in PROFILES:
            raise ValueError(unknown("profile", values["profile"], PROFILES))
        planned = book[name]["runs"].get(values["profile"], [{}] if names else [])
        if not planned:
            print(f"{name}: nothing is planned in profile {values['profile']}; PAGES={name} runs it all the same")
        for runs in planned[:1] if PLANNED & set(values) else planned:
            jobs += split(page, {"folder": str(ROOT), "start": "", "seeds": [0], **runs, **values}, book[name]["rows"])
    return jobs


def split(page, values, rows):
    """A job for each seed."""
    choices = [values.get("methods", ["csq"]), values.get("targets", [2.0]), values.get("activations", [None])]
    for method, target, bits, seed in product(*choices, values["seeds"]):
        plan(method, rows["model"], rows["data"], target, seed, values["profile"],
             activation_bits=bits, epochs=values.get("epochs"))  # fmt: skip
    epochs = f"-{values['epochs']}epochs" if values.get("epochs") else ""
    return [
        (f"{page.stem}-{values['profile']}{epochs}-seed{seed}", page, {**values, "seeds": [seed]})
        for seed in values["seeds"]
    ]


def start(name, page, values, threads):
    """A process that executes the page; it writes <name>.partial.ipynb and <name>.log."""
    folder = Path(values["folder"], "runs", "reproductions")
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "papermill", str(page), str(folder / f"{name}.partial.ipynb"), "--cwd", str(ROOT),
               "--no-progress-bar", "-y", yaml.safe_dump(values)]  # fmt: skip
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "TQDM_DISABLE": "1"}
    with open(folder / f"{name}.log", "w") as log:  # a session of its own: Ctrl-C reaches this process alone
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def finish(name, values, process):
    """Put a page that went well into its place; say why another did not. Returns whether it went well."""
    folder = Path(values["folder"], "runs", "reproductions")
    if process.returncode == 0:
        os.replace(folder / f"{name}.partial.ipynb", folder / f"{name}.ipynb")
        say(f"{name}: done, {folder / name}.ipynb")
        return True
    lines = (folder / f"{name}.log").read_text(errors="replace").split("\n")
    why = next((line for line in reversed(lines) if line.strip()), "no word of why")
    say(f"{name}: failed with exit code {process.returncode}: {why}\n  all of it: {folder / name}.log")
    return False


def run(jobs, room):
    """Run jobs, so many at a time; the names of those that failed."""
    waiting, running, failed = list(jobs), {}, []
    news = News({values["folder"] for _, _, values in jobs})
    try:
        while waiting or running:
            while waiting and len(running) < room:
                job = waiting.pop(0)
                running[job[0]] = job[2], start(*job, max((os.cpu_count() or 1) // room, 1))
                say(f"{job[0]}: started")
            time.sleep(0.2)
            news.tell()
            for name, (values, process) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    failed += [] if finish(name, values, process) else [name]
    finally:  # by Ctrl-C: their kernels notice within a second that they are alone, and end
        for _, process in running.values():
            process.terminate()
            process.wait()
    return failed


def how_many(text, room):
    """How many processes at a time: as the text says, else as there is room for."""
    if text and not (text.isdecimal() and int(text)):
        raise ValueError(f"JOBS must be a whole number of at least 1, got {text!r}")
    return int(text or max(room, 1))


class News:
    """Tells of each epoch that the runs in some folders finish."""

    def __init__(self, folders):
        self.folders = folders
        self.seen = {file: file.stat().st_mtime for file in self.files()}

    def files(self):
        return [file for folder in self.folders for file in Path(folder, "runs").glob("*/history.jsonl")]

    def tell(self):
        for file in self.files():
            if (changed := file.stat().st_mtime) != self.seen.get(file):
                self.seen[file], row = changed, json.loads(file.read_text().splitlines()[-1])
                say(f"  {file.parent.name}: epoch {row['epoch']}, loss {row['loss']:.3f}, accuracy {row['hard']:.3f}")


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main(argv):
    try:
        given = read_words(argv)
        cuda = torch.cuda.is_available()
        room = how_many(given.pop("jobs", ""), 3 if cuda else (os.cpu_count() or 1) // 2)
        jobs = find_jobs(given)
        if not cuda and any(PROFILES[values["profile"]].needs_gpu for _, _, values in jobs):
            raise ValueError("profile 'full' needs a GPU, and torch sees none: PROFILE=cpu or PROFILE=smoke")
    except (ValueError, FileNotFoundError) as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 2
    failed = []
    for page in dict.fromkeys(page for _, page, _ in jobs):  # one after the other: some share runs
        failed += run([job for job in jobs if job[1] == page], room)
    if failed:
        say(f"failed: {', '.join(failed)}. The same command goes on where these stopped")
    return 1 if failed else 0


def stop(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    try:
        sys.exit(main(from_make(os.environ) + sys.argv[1:]))
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoints", file=sys.stderr)
        sys.exit(130)
