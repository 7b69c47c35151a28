"""The folder of a run. Its files are written whole or not at all, and read back only by the same run.

    run.json         recipe, model, data, format version
    checkpoint.pt    state after some step: model, optimizer, random numbers, history so far
    history.jsonl    a line for each epoch
    result.json      accuracy on the test split, and totals
    model.safetensors    the hardened model, packed (csq.load_packed); for a float run model.pt, its state_dict
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import nn

from ..data import Data
from ..files import write_json, write_whole
from ..modules import unwrap
from ..packed.save import save_packed
from ..recipes import Recipe
from ..report import Report
from . import processes as parallel

FORMAT = 3
STATE = {"phase", "step", "history", "loss", "seconds", "images", "model", "optimizer", "rng"}  # in a checkpoint


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

    ``model`` is the :func:`fingerprint` of the float model. Where several processes train together, only the first
    writes. Raises ValueError if the folder holds something else, OSError if it cannot be written to or is in use.
    """

    def __init__(
        self, path: str | Path, model: str, data: Data, recipe: Recipe,
        bfloat16: bool = False, tensorboard: bool = False,
    ):  # fmt: skip
        self.path = Path(path)
        self.writes = parallel.rank() == 0  # the other processes only read
        self.make_writer = _event_writer() if tensorboard else None
        self.run: dict[str, Any] = {
            "format": FORMAT,
            "recipe": {**recipe.to_dict(), "skip": list(recipe.skip)},
            "model": model,
            "bfloat16": bfloat16,
            "data": f"{data.name}, {' + '.join(str(len(s[1])) for s in (data.train, data.valid, data.test))}",
        }
        self.lock = FileLock(self.path / ".lock", timeout=0)  # released when the process ends, however it ends
        self.events: Any = None
        self.written = 0  # entries of the history already written as events

    def __enter__(self) -> RunFolder:
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

    def _claim(self) -> None:
        if not self.writes:
            parallel.wait()  # until the first process has claimed it
        file = self.path / "run.json"
        if file.exists():
            self._compare(_read_json(file))
        else:
            write_json(file, self.run)
        if self.writes:
            self.events = self.make_writer(str(self.path)) if self.make_writer else None
            parallel.wait()

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, or None if there is none yet; ValueError if it is damaged or of another run."""
        file = self.path / "checkpoint.pt"
        if not file.exists():
            return None
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            there, missing = state["run"], STATE - set(state)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise ValueError(_damaged(file, type(error).__name__)) from error
        if missing:
            raise ValueError(_damaged(file, f"no {', '.join(sorted(missing))}"))
        self._compare(there)
        self.written = len(state["history"])
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint with this state."""
        if self.writes:
            write_whole(self.path / "checkpoint.pt", lambda file: torch.save({"run": self.run, **state}, file))

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
            write_whole(self.path / "model.pt", lambda file: torch.save(model.state_dict(), file))
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
            if key != "recipe" and there.get(key) != value
        ]
        if wrong:
            raise ValueError(f"{self.path} holds another run: {'; '.join(wrong)}. Give another run_dir")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
        return {**content, "recipe": dict(content["recipe"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(_damaged(file, str(error))) from None


def _damaged(file: Path, why: str) -> str:
    return f"{file} is damaged ({why}): delete it to start this run again, or give another run_dir"


def fingerprint(model: nn.Module) -> str:
    """Class, architecture and initial weights in one line; a run resumes only if all three are the same."""
    shapes, values = hashlib.sha256(), hashlib.sha256()
    for key, t in sorted(unwrap(model).state_dict().items()):
        shapes.update(f"{key} {tuple(t.shape)} {t.dtype}".encode())
        values.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"{type(model).__name__} {shapes.hexdigest()[:12]}, weights {values.hexdigest()[:12]}"


def _event_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard=True needs the tensorboard package: pip install tensorboard") from error
    return SummaryWriter
