import json
import re
import subprocess
import sys

import pytest
import torch

import csq_mini as csq
from csq_mini import cli
from csq_mini.experiments import pretrained

TINY = ["--set", "search_epochs=1", "--set", "finetune_epochs=1", "--set", "batch_size=256", "--quiet"]
HEAVY = ("matplotlib", "seaborn", "pandas", "sklearn", "torchvision", "tqdm", "ipywidgets")


def test_importing_the_library_brings_torch_and_numpy_alone():
    code = (
        # torch itself imports tqdm where it is installed
        "import sys, torch, numpy; before = set(sys.modules); import csq_mini\n"
        f"print([m for m in {HEAVY} if m in sys.modules and m not in before])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_public_names_are_all_there():
    assert all(hasattr(csq, name) for name in csq.__all__)
    with pytest.raises(AttributeError, match="no attribute 'plotz'"):
        csq.plotz  # noqa: B018


def test_train_prints_the_report_and_the_accuracy(capsys):
    assert cli.main(["train", "digits", "--target", "2.5", "--seed", "3", *TINY]) == 0
    out, err = capsys.readouterr()
    assert "paper bits" in out and "weights in" in out
    assert "accuracy on the test split: 0." in out and "seed 3" in out and "last epoch" in out
    assert err == ""


def test_train_keeps_its_run_and_repeats_it(tmp_path, capsys):
    command = ["train", "digits", "--run-dir", str(tmp_path / "run"), *TINY]
    assert cli.main(command) == 0
    first = capsys.readouterr().out
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["paper_bits"] <= 2.0 and f"{result['accuracy']:.4f}" in first and "run" in first
    assert cli.main(command) == 0
    assert capsys.readouterr().out == first


def test_train_without_a_target_prints_no_empty_report(capsys):
    assert cli.main(["train", "digits", "--set", "target=None", *TINY]) == 0
    out = capsys.readouterr().out
    assert "None" not in out and "accuracy" in out and "hardened" not in out


FIELDS = {"skip=0.*,9": ("0.*", "9"), "lr=0.05": 0.05, "lr=5e-2": 0.05, "logit_lr=None": None, "planes=4": 4,
          "target=none": None, "skip=": (), "seed=7": 7, "warmup_epochs=1.5": 1.5,
          **{f"growth={word}": False for word in ("False", "false", "FALSE", "no", "off", "0")},
          **{f"one_rate={word}": True for word in ("True", "true", "yes", "on", "1")}}  # fmt: skip


@pytest.mark.parametrize("text", FIELDS)
def test_set_takes_whatever_a_recipe_takes(text, monkeypatch):
    seen = {}

    def fit(model, data, recipe, **options):
        seen.update(recipe.to_dict())
        raise ValueError("enough")

    monkeypatch.setattr(cli, "fit", fit)
    cli.main(["train", "digits", "--set", text])
    assert seen[text.partition("=")[0]] == FIELDS[text]


BAD = {
    "recipe": (["digts"], "unknown recipe 'digts'; did you mean digits"),
    "model": (["digits", "--model", "resnet2"], "unknown model 'resnet2'; did you mean resnet20"),
    "data": (["digits", "--data", "digit"], "unknown data set 'digit'; did you mean digits"),
    "field": (["digits", "--set", "serch_epochs=3"], "unknown Recipe field 'serch_epochs'; did you mean search_epochs"),
    "assignment": (["digits", "--set", "lr"], "--set takes field=value, got 'lr'"),
    "value": (["digits", "--set", "lr=fast"], "lr must be .* got 'fast'"),
    "target": (["digits", "--target", "9"], "9.0 cannot be reached.*between"),
    "nan": (["digits", "--target", "nan"], "target.*nan"),
    "device": (["digits", "--device", "abacus"], "abacus"),
    "planes": (["digits", "--set", "planes=9"], "planes.*1 to 8.*9"),
    "yes or no": (["digits", "--set", "growth=maybe"], "growth must be True or False, got 'maybe'"),
    "nothing": (["digits", "--set", "growth="], "growth must be True or False, got ''"),
    "no number": (["digits", "--set", "lr=none"], "lr must be a finite number.*got None"),
    "infinity": (["digits", "--set", "lr=1e999"], "lr must be a finite number.*got inf"),
    "deep": (["digits", "--set", "target=" + "(" * 5000], "target must be a finite number"),
    "no thread": (["digits", "--threads", "0"], "--threads must be a whole number from 1 to .*, got 0"),
    "threads": (["digits", "--threads", "100000000"], "--threads must be .* from 1 to .*, got 100000000"),
    "terminal": (["\x1b[31mdigits\n"], r"unknown recipe '\\x1b\[31mdigits\\n'; did you mean digits"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_argument_ends_in_one_line_and_exit_code_2(case, tmp_path, capsys):
    arguments, message = BAD[case]
    assert cli.main(["train", *arguments, "--run-dir", str(tmp_path / "run"), *TINY]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("csq-mini: ") and err.count("\n") == 1
    assert re.search(message, err)
    assert not (tmp_path / "run").exists()


def test_no_error_is_a_traceback_nor_rules_the_terminal(monkeypatch, capsys):
    def fail(args):
        raise args.error

    errors = (KeyError("model"), AttributeError("x\x1b[2J\ny"), RecursionError("deep"), KeyboardInterrupt())
    for error, code, text in zip(errors, (2, 2, 2, 130), ("KeyError: 'model'", "x\\x1b[2J y", "deep", "stopped")):
        monkeypatch.setattr(cli, "doctor", lambda args, error=error: fail(type(args)(error=error)))
        assert cli.main(["doctor"]) == code
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("csq-mini: ") and text in err and "\x1b" not in err and err.count("\n") == 1


def test_reproduce_passes_on_what_was_asked_for(monkeypatch, capsys):
    asked = []
    row = pretrained.row("resnet20-cifar10-2bit")
    monkeypatch.setattr(cli, "reproduce", lambda **options: asked.append(options) or row)
    assert cli.main(["reproduce", "csq"]) == 0
    assert cli.main(["reproduce", "no-masks", "--results", "rows", "--keep", "--target", "3", "--seed", "1", "--quiet",
                     "--model", "digits_cnn", "--data", "digits", "--epochs", "4", "--activation-bits", "5",
                     "--fold", "2", "--set", "lr=0.01", "--set", "growth=no"]) == 0
    usual = {"method": "csq", "model": "resnet20", "data": "cifar10", "target": 2.0, "seed": 0, "profile": "smoke",
             "scheme": None, "activation_bits": None, "epochs": None, "changes": {}, "fold": None, "start": None,
             "device": None, "run_dir": None, "data_root": None, "results": "results", "keep": False,
             "progress": True}  # fmt: skip
    other = {"method": "no-masks", "results": "rows", "keep": True, "target": 3.0, "seed": 1, "progress": False,
             "model": "digits_cnn", "data": "digits", "epochs": 4, "activation_bits": 5,
             "fold": 2, "changes": {"lr": 0.01, "growth": False}}  # fmt: skip
    assert asked == [usual, usual | other]
    assert f"{row.key}: accuracy {row.accuracy:.4f} at 1.9" in capsys.readouterr().out


def test_a_folder_in_use_ends_in_one_line(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main(["train", "digits", "--run-dir", str(tmp_path), *TINY]) == 2
    assert "not empty and not a run" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train"], ["train", "--help"], ["nothing"], ["--version"]])
def test_the_command_explains_itself(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == (0 if set(arguments) & {"--help", "--version"} else 2)
    assert "csq-mini" in out + err


def test_doctor_names_versions_device_threads_and_data(capsys, tmp_path, monkeypatch):
    (tmp_path / "cifar").mkdir()
    monkeypatch.setenv("CSQ_DATA", str(tmp_path))
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for text in (
        csq.__version__,
        torch.__version__.partition("+")[0],
        "device:",
        "threads:",
        "digits (embedded)",
        "cifar",
        "Python 3",
    ):
        assert text in out
    assert "  csq-mini" not in out  # an extra that asks for another is no package


@pytest.mark.parametrize("there", [True, False])
def test_doctor_names_the_book_only_where_it_is(there, capsys, monkeypatch):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: there or None)
    assert cli.main(["doctor"]) == 0
    assert ("csq_book" in capsys.readouterr().out) is there


def test_doctor_says_what_is_missing_and_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setattr(
        cli, "_requirements", lambda: [("torch", ""), ("no-such-package", "book"), ("no-such-base", "")]
    )
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert 'no-such-package: pip install -e ".[book]"' in out and 'missing no-such-base: pip install -e "."' in out


def test_doctor_is_content_without_extras(capsys, monkeypatch):
    monkeypatch.setattr(cli, "_requirements", lambda: [("torch", ""), ("no-such-package", "book")])
    assert cli.main(["doctor"]) == 0


def test_the_installed_command_runs_as_a_module(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "csq_mini.cli", "train", "digts"], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and "did you mean digits" in run.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words, expected", [([], None), (["--bfloat16"], True), (["--no-bfloat16"], False)])
def test_bfloat16_is_switched_by_one_word(words, expected, monkeypatch):
    seen = {}

    def fit(model, images, recipe, **options):
        seen.update(options)
        raise ValueError("seen enough")

    monkeypatch.setattr(cli, "fit", fit)
    assert cli.main(["train", "digits", *words]) == 2 and seen["bfloat16"] is expected
