"""Packed files that runs left: the trained networks that come with the library, and those of your own runs."""

from pathlib import Path

from torch import nn

from ..check import unknown
from ..files import read_json, write_whole
from ..packed import load_packed
from ..packed.verify import read_packed
from .rows import Row, read_row

WEIGHTS = Path(__file__).parents[1] / "weights"
"""Packed files that come with the library, each with the row of results (.json) of its run."""


def names() -> list[str]:
    """Names that :func:`pretrained` takes."""
    return sorted(file.stem for file in WEIGHTS.glob("*.safetensors"))


def pretrained(name: str) -> nn.Module:
    """A trained and exactly quantized network that comes with the library, in evaluation mode.

    Its attribute ``csq_row`` is the row of results of its run. A ``name`` says network, data set and bits a weight, as
    in "resnet20-cifar10-2bit"; an unknown one is a ValueError.
    """
    if name not in names():
        raise ValueError(unknown("trained network", name, names()))
    model = load_packed(WEIGHTS / f"{name}.safetensors")
    model.csq_row = row(name)  # type: ignore[assignment]
    return model


def row(name: str) -> Row:
    """What the run of a trained network came to: its accuracy, size, recipe, hardware and versions."""
    return read_row(WEIGHTS / f"{name}.json")


def pack_run(run: str | Path, path: str | Path) -> int:
    """Verify the packed file that a finished run left, and copy it to ``path``; returns the bytes written.

    Args:
        run: the ``run_dir`` of :func:`csq_mini.fit`, or a row of results (.json) whose model was kept.
        path: of the copy; a file that is there is replaced.

    Raises:
        FileNotFoundError, ValueError: if the run is not finished, or left no packed file, or a damaged one.
    """
    run = Path(run)
    left = _folder_file(run) if run.suffix != ".json" or run.is_dir() else _row_file(run)
    blob, _ = read_packed(left)
    write_whole(path, lambda file: file.write(blob))
    return len(blob)


def _row_file(run: Path) -> Path:
    if not read_row(run).scheme:
        raise ValueError(f"{run} trained float weights: there is nothing to pack")
    file = run.with_suffix(".safetensors")
    if not file.exists():
        raise FileNotFoundError(f"the model of {run} was not kept: delete the row and run it again with keep=True")
    return file


def _folder_file(run: Path) -> Path:
    if not (run / "result.json").exists():
        raise FileNotFoundError(f"{run} is no finished run (it has no result.json): give the run_dir of csq.fit, "
                                "or the .json of a row that was kept")  # fmt: skip
    try:
        target = read_json(run / "run.json")["recipe"]["target"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{run / 'run.json'} is damaged ({error}): train it again in a new folder") from None
    if target is None:
        raise ValueError(f"{run} trained float weights: there is nothing to pack")
    file = run / "model.safetensors"
    if not file.exists():
        raise FileNotFoundError(f"{run} is a run of an older version, which kept no packed file (model.safetensors): "
                                "pack it with that version, or train it again in a new folder")  # fmt: skip
    return file
