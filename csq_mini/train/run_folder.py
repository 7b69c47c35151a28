"""The folder of a run: what it holds is written whole or not at all, and only read back if it fits.

    run.json         what is run: recipe, model, data, format version
    checkpoint.pt    state after some step: model, optimizer, random numbers, history so far
    history.jsonl    a line an epoch
    result.json      accuracy on the test split, and totals
    model.safetensors    the hardened model, packed (csq.load_packed); of a float run model.pt, its state_dict
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import nn

from ..files import write_json, write_whole
from ..packed.save import save_packed
from ..planes import unwrap
from . import processes as parallel

if TYPE_CHECKING:
    from ..data import Data
    from ..recipes import Recipe
    from ..report import Report

FORMAT = 3
STATE = {"phase", "step", "history", "loss", "seconds", "images", "model", "optimizer", "rng"}
"""What a checkpoint holds, beside the run it belongs to."""


def get_rng_state() -> dict[str, Any]:
    """State of every global random generator a training may draw from, as tensors and numbers."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what :func:`get_rng_state` took."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


class RunFolder:
    """Claims a folder for a run, or reopens the one it is: ``with RunFolder(...) as folder:``.

    While it is open no other process can claim the folder. Of several processes that train together
    (``processes.py``) only the first writes.

    Args:
        path: a folder that does not exist, is empty, or holds this very run.
        model: the :func:`fingerprint` of the float model.
        data, recipe, bfloat16: of the run.
        tensorboard: whether :meth:`write_history` also writes events.

    Raises:
        ValueError: if the folder is not empty and no run, or a run of something else.
        OSError: if it cannot be made or written to, or another run is using it.
        ImportError: if TensorBoard is wanted and not installed.
    """

    def __init__(
        self, path: str | Path, model: str, data: Data, recipe: Recipe,
        bfloat16: bool = False, tensorboard: bool = False,
    ):  # fmt: skip
        self.path = Path(path)
        self.make_writer = _event_writer() if tensorboard else None
        self.run: dict[str, Any] = {
            "format": FORMAT,
            "recipe": {**recipe.to_dict(), "skip": list(recipe.skip)},
            "model": model,
            "bfloat16": bfloat16,
            "data": f"{data.name}, {' + '.join(str(len(s[1])) for s in (data.train, data.valid, data.test))}",
        }
        self.lock = FileLock(self.path / ".lock", timeout=0)  # a process that ends, however it ends, lets go of it
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

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes."""
        return parallel.rank() == 0

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
        """The last checkpoint, or None if there is none yet.

        Raises:
            ValueError: if it is damaged or of another format.
        """
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
        """Replace the checkpoint by this state."""
        if not self.writes:
            return
        write_whole(self.path / "checkpoint.pt", lambda file: torch.save({"run": self.run, **state}, file))

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Replace the history; new entries go to TensorBoard too."""
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
        """Write the hardened model as a packed file, or a float model's state_dict, and what it came to."""
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
        if there.get("format") != FORMAT:
            version = there.get("format")
            raise ValueError(f"{self.path} holds a run of format {version}, this reads {FORMAT}: give another run_dir")
        flat_there: dict[str, Any] = {**there, **there["recipe"]}
        flat_asked: dict[str, Any] = {**self.run, **self.run["recipe"]}
        wrong = [
            f"{key} is {flat_there.get(key)!r} there and {value!r} here"
            for key, value in flat_asked.items()
            if key != "recipe" and flat_there.get(key) != value
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
    """Class, architecture and initial weights of a model in one line, to tell whether a run is the same.

    A run that is to be resumed must begin from the same weights: seed their initialisation.
    """
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
