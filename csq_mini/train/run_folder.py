"""The folder of a run. Its files are written whole or not at all, and read back only by the same run.

    run.json         recipe, model, data, functions, format version: what makes the run; and what it was begun with
    checkpoint.pt    state after some step: model, optimizer, random numbers, history so far
    history.jsonl    a line for each epoch
    result.json      accuracy on the test split, and totals
    model.safetensors    the hardened model, packed (csq.load_packed); for a float run model.pt, its state_dict
"""

from __future__ import annotations

import json
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import nn

from ..files import __version__, open_regular, read_json, read_state, write_json, write_state, write_whole
from ..packed.save import save_packed
from ..recipes import Recipe
from ..report import Report
from . import processes as parallel
from .progress import STATE

FORMAT = 4


def get_rng_state() -> dict[str, Any]:
    """State of every global random generator that training may use, as tensors and numbers."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what :func:`get_rng_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


class RunFolder:
    """The folder of a new or resumed run, closed to other processes while ``with RunFolder(...) as folder:`` lasts.

    ``identity`` is that of :mod:`.identity`: with the recipe it makes the run. Where several processes train together,
    only the first writes. A finished run is read back even where nothing can be written. Raises ValueError if the
    folder holds something else, OSError if it cannot be written to or is in use.
    """

    def __init__(
        self, path: str | Path, identity: dict[str, str], recipe: Recipe, device: torch.device,
        bfloat16: bool = False, tensorboard: bool = False,
    ):  # fmt: skip
        self.path = Path(path)
        self.writes = parallel.rank() == 0  # the other processes only read
        self.make_writer = _event_writer() if tensorboard else None
        self.run: dict[str, Any] = {
            "format": FORMAT,
            "recipe": {**recipe.to_dict(), "skip": list(recipe.skip)},
            **identity,
            "bfloat16": bfloat16,
            "begun_with": {
                "csq_mini": __version__, "torch": str(torch.__version__), "device": device.type,
                "threads": torch.get_num_threads(), "processes": parallel.count(),
            },
        }  # fmt: skip
        self.lock = FileLock(self.path / ".lock", timeout=0)  # released when the process ends, however it ends
        self.events: Any = None
        self.written = 0  # entries of the history already written as events

    def __enter__(self) -> RunFolder:
        self.writes = self.writes and not (self.finished and not os.access(self.path, os.W_OK | os.X_OK))
        if self.writes:
            self._make()
            self._refuse_foreign()  # before anything is written, the lock too
            try:
                self.lock.acquire()
            except Timeout:
                text = f"another run is using {self.path}: wait for it, or give another run_dir"
                raise BlockingIOError(text) from None
        try:
            self._claim()
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.lock.release()

    @property
    def finished(self) -> bool:
        """Whether its result is there; the checkpoint that it came from is there too."""
        return (self.path / "result.json").exists()

    def _claim(self) -> None:
        if not self.writes:
            parallel.wait()  # until the first process has claimed it
        file = self.path / "run.json"
        if file.exists():
            there = _read_run(file)
            self._compare(there)
            self._warn(there)
        else:
            write_json(file, self.run)
        if self.writes:
            for left in self.path.glob("*.partial"):  # by a process that was killed
                left.unlink()
            self.events = self.make_writer(str(self.path)) if self.make_writer else None
            parallel.wait()

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, or None if there is none yet; ValueError if it is damaged or of another run."""
        file = self.path / "checkpoint.pt"
        if not file.exists():
            return None
        try:
            with open_regular(file) as opened:
                state = read_state(opened, sealed=True)
            there, missing = state["run"], STATE - set(state)
        except Exception as error:  # torch raises many kinds for a damaged file
            why = str(error) if type(error) is ValueError else type(error).__name__
            raise ValueError(_damaged(file, why)) from error
        if missing:
            raise ValueError(_damaged(file, f"no {', '.join(sorted(missing))}"))
        self._compare(there)
        self.written = len(state["history"])
        return state

    def resume(self, load: Callable[[dict[str, Any]], Any]) -> None:
        """Give ``load`` the last checkpoint, if there is one; ValueError if it is damaged or of another run."""
        state = self.load()
        try:
            if state:
                load(state)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            why = str(error) if type(error) is ValueError else type(error).__name__
            raise ValueError(_damaged(self.path / "checkpoint.pt", why)) from error

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint with this state."""
        if self.writes:
            write_state(self.path / "checkpoint.pt", {"run": self.run, **state})

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Replace the history, and send its new entries to TensorBoard."""
        if not self.writes:
            return
        text = "".join(json.dumps(entry) + "\n" for entry in history)
        write_whole(self.path / "history.jsonl", lambda file: file.write(text.encode()))
        if self.events:
            for entry in history[self.written :]:
                for key, value in entry.items():
                    if isinstance(value, (int, float)):
                        self.events.add_scalar(key, value, entry["epoch"])
            self.events.flush()
            self.written = len(history)

    def write_result(self, model: nn.Module, accuracy: float, report: Report | None, recipe: Recipe) -> None:
        """Write the hardened model as a packed file, or a float model's state_dict, and the totals."""
        if not self.writes:
            return
        if report:
            save_packed(model, self.path / "model.safetensors", recipe)
        else:
            write_state(self.path / "model.pt", model.state_dict())
        write_json(self.path / "result.json", {"accuracy": accuracy, **(vars(report.total) if report else {})})

    def _refuse_foreign(self) -> None:
        names = {p.name for p in self.path.iterdir()}
        if "run.json" not in names and any(name != ".lock" and not name.endswith(".partial") for name in names):
            raise ValueError(f"{self.path} is not empty and not a run: give an empty or new folder as run_dir")

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = f"cannot make the run folder {self.path}: {error.strerror}; give another run_dir"
            raise type(error)(text) from None
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write to {self.path}: give another run_dir")

    def _compare(self, there: dict[str, Any]) -> None:
        version = there.get("format")
        if version != FORMAT:
            raise ValueError(f"{self.path} holds a run of format {version}, this reads {FORMAT}: give another run_dir")
        there, here = {**there, **there["recipe"]}, {**self.run, **self.run["recipe"]}
        wrong = [
            f"{key} is {there.get(key)!r} there and {value!r} here"
            for key, value in here.items()
            if key not in ("recipe", "begun_with") and there.get(key) != value
        ]
        if wrong:
            own = "; or name a function yourself, function.csq_identity = 'mine, version 1'" * any(
                text.startswith(("augment", "prepare", "loss", "metric")) for text in wrong
            )
            raise ValueError(f"{self.path} holds another run: {'; '.join(wrong)}. Give another run_dir{own}")

    def _warn(self, there: dict[str, Any]) -> None:
        """Say so if the bits of a run that goes on may not be those of a run without a break."""
        before, now = there.get("begun_with", {}), self.run["begun_with"]
        other = [f"{key} {before.get(key)} there and {now[key]} here" for key in now if before.get(key) != now[key]]
        if other and not self.finished and self.writes:
            warnings.warn(f"{self.path} was begun with {'; '.join(other)}: the run goes on, but the last bits of its "
                          "result may differ from those of a run without a break", stacklevel=5)  # fmt: skip


def _read_run(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
        return {**content, "recipe": dict(content["recipe"]), "begun_with": dict(content.get("begun_with", {}))}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(_damaged(file, str(error))) from None


def _damaged(file: Path, why: str) -> str:
    return f"{file} is damaged ({why}): delete it to start this run again, or give another run_dir"


def _event_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard=True needs the tensorboard package: pip install tensorboard") from error
    return SummaryWriter
