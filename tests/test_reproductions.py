"""The reproduction pages with rows made up for them, and what drives them through papermill."""

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import jupytext
import nbformat
import pandas
import pytest
import torch
import yaml
from made_up_rows import made_up

import csq_mini as csq
from csq_mini.experiments.reproduce import METHODS
from csq_mini.experiments.rows import SCHEMA, load_rows, write_row

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("papermill", reason='needs pip install -e ".[book]"')
sys.path.insert(0, str(ROOT / "book" / "_ext"))
import reproduce  # noqa: E402

NAMES = ["resnet20", "vgg19bn", "activations", "ablations"]
HISTORY = pandas.DataFrame({"epoch": [1]})


# The pages


def show_page(name, monkeypatch, **parameters):
    """All that a page shows, as text; its code runs here, with these parameters in place of its own."""
    shown = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    names = {"display": shown.append, "print": lambda *words: shown.append(" ".join(map(str, words)))}
    for cell in jupytext.read(ROOT / f"book/reproductions/{name}.md").cells:
        if cell.cell_type == "code":
            *code, last = ast.parse(cell.source).body
            value = last.value if isinstance(last, ast.Expr) else None
            exec(compile(ast.Module(code if value else [*code, last], []), name, "exec"), names)
            shown.append(eval(compile(ast.Expression(value), name, "eval"), names) if value else None)
            names |= parameters if "parameters" in cell.metadata.get("tags", []) else {}
    return "\n".join(item.data if hasattr(item, "data") else str(item) for item in shown)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_without_rows_says_not_run(name, monkeypatch, tmp_path):
    (tmp_path / "book/results/rows").mkdir(parents=True)
    text = show_page(name, monkeypatch, seeds=[], folder=str(tmp_path))
    assert "not run" in text and not any(f"<td>{word}</td>" in text for word in ("reached", "short", "incomplete"))


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_what_the_rows_say(name, monkeypatch, tmp_path):
    rows = [made_up(method, 2.0, accuracy=0.9) for method in METHODS if method != "float"]
    rows += [made_up("csq", 3.0, seed, accuracy=0.8766) for seed in (0, 1, 2)]
    rows += [made_up("float", 3.0, seed, accuracy=0.9177) for seed in (0, 1, 2)]
    rows += [made_up("csq", 3.0, activation_bits=4, accuracy=0.87), made_up("csq", 2.0, model="vgg19bn", accuracy=0.93,
             scheme={"conv1_1.conv": "11......", "fc": "1F......"})]  # fmt: skip
    for row in rows:
        layers = {"conv1": "11......", "fc": "1F......"} if row.model == "resnet20" else row.scheme
        row.scheme.clear() if row.method == "float" else row.scheme.update(layers)
        write_row(tmp_path / "book/results/rows", row, HISTORY)
    text = show_page(name, monkeypatch, seeds=[], folder=str(tmp_path))
    expected = {
        "resnet20": ["87.66%", "91.77%", "-4.11", ">reached<", ">short<", ">not run<", "resnet20-cifar10-csq-3.0"],
        "vgg19bn": ["93.00%", ">not run<", "vgg19bn-cifar10-csq"],
        "activations": ["87.00%", "-0.66", "-3.89", ">not run<"],
        "ablations": ["without masks, target 2", "+0.00", ">no bound<"],
    }
    assert not [words for words in expected[name] if words not in text]
    assert "NVIDIA H200" in text and "one seed" in text


def test_a_row_of_another_schema_stops_a_page(monkeypatch, tmp_path):
    write_row(tmp_path / "book/results/rows", made_up(schema=SCHEMA + 1), HISTORY)
    with pytest.raises(ValueError, match=f"has schema {SCHEMA + 1}"):
        show_page("vgg19bn", monkeypatch, seeds=[], folder=str(tmp_path))


def test_the_first_page_goes_on_without_images_unless_rows_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("CSQ_DATA", str(tmp_path / "nothing"))
    assert "CIFAR-10 is not here: python data_scripts/cifar10.py" in show_page("resnet20", monkeypatch)
    with pytest.raises(FileNotFoundError):
        show_page("resnet20", monkeypatch, folder=str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_only_the_first_page_trains_while_the_book_is_built(name):
    known = reproduce.papermill.inspect_notebook(ROOT / f"book/reproductions/{name}.ipynb")
    assert known["seeds"]["default"] == ("[0]" if name == "resnet20" else "[]")
    assert known["profile"]["default"] == '"smoke"' and known["folder"]["default"] == '""'
    assert all(
        parameter["inferred_type_name"] in reproduce.READERS and parameter["help"] for parameter in known.values()
    )


# What is asked for is checked before anything starts


def jobs_of(*words):
    return reproduce.find_jobs(reproduce.read_words(words))


def test_plans_become_a_job_a_page_and_seed():
    names = [name for name, *_ in jobs_of("PROFILE=full", "PAGES=resnet20")]
    assert names == [f"resnet20-full{more}-seed{seed}" for more in ("", "-200epochs") for seed in (0, 1, 2)]
    [(name, page, values)] = jobs_of("PROFILE=cpu", "PAGES=resnet20")
    assert name == "resnet20-cpu-seed0" and page == reproduce.PAGES / "resnet20.ipynb"
    plan = {"methods": ["csq"], "targets": [2, 3, 4], "seeds": [0]}
    assert values == {"profile": "cpu", "folder": str(ROOT), "start": "", **plan}  # whatever the page begins from
    assert {page.stem for _, page, _ in jobs_of()} == set(NAMES)
    assert {page.stem for _, page, _ in jobs_of("PROFILE=cpu")} == set(NAMES) - {"vgg19bn"}  # of it nothing is planned
    assert len(jobs_of("PROFILE=cpu", "PAGES=vgg19bn")) == 1  # but named it runs


def test_given_words_take_the_place_of_the_plan():
    jobs = jobs_of("PROFILE=full", "PAGES=resnet20", "TARGETS=2 2.5", "SEEDS=4,5", "METHODS=csq")
    assert [name for name, *_ in jobs] == ["resnet20-full-seed4", "resnet20-full-seed5"]
    assert jobs[1][2] == {
        "profile": "full",
        "folder": str(ROOT),
        "start": "",
        "targets": [2.0, 2.5],
        "methods": ["csq"],
        "seeds": [5],
    }
    [(_, _, values)] = jobs_of("PAGES=activations", "ACTIVATIONS=5")
    assert values["activations"] == [5] and values["targets"] == [3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["TARGTS=2"], "unknown parameter 'targts'; did you mean targets"),
        (["PAGES=resnet20", "ACTIVATIONS=4"], "page resnet20: unknown parameter 'activations'"),
        (["TARGETS=2 x"], r"targets must be list\[float\] \(bits a weight.*got '2 x'"),
        (["SEEDS=0.5"], r"seeds must be list\[int\]"),
        (["EPOCHS=ten"], "epochs must be int"),
        (["PAGES=resnet"], "unknown page 'resnet'; did you mean resnet20"),
        (["PROFILE=smok"], "unknown profile 'smok'; did you mean smoke"),
        (["METHODS=csqq"], "unknown method 'csqq'; did you mean csq"),
        (["TARGETS=-1"], "target must be"),
        (["START=/no/such/file.pt"], "no checkpoint /no/such/file.pt"),
        (["JOBS=many"], "JOBS must be a whole number of at least 1, got 'many'"),
        (["smoke"], "'smoke' is no NAME=VALUE"),
    ],
)
def test_wrong_words_are_refused(words, message, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "start", None)  # nothing may be started
    assert reproduce.main(words) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("name", ["my (1).pt", "it's.pt", "a;b&c.pt", "$(x).pt", 'a"b\n#.pt'])
def test_words_come_from_make_as_they_were_typed(name, tmp_path):
    file = tmp_path / name
    file.touch()
    given = {"FROM_MAKE": "START PAGES PYTHON NEED_GB LOCK", "START": str(file), "PAGES": "resnet20", "PYTHON": "x"}
    [(_, _, values), *_] = jobs_of(*reproduce.from_make(given))
    assert values["start"] == str(file.resolve())


def test_a_misspelt_variable_of_make_is_refused():
    assert reproduce.from_make({"SEEDS": "1"}) == []  # nobody gave it to make
    with pytest.raises(ValueError, match="unknown parameter 'strat'; did you mean start"):
        jobs_of(*reproduce.from_make({"FROM_MAKE": "STRAT", "STRAT": "x.pt"}))
    with pytest.raises(ValueError, match="unknown parameter 'a-b'"):
        jobs_of(*reproduce.from_make({"FROM_MAKE": "a-b"}))  # no name for an environment


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_full_without_a_gpu_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "start", None)
    assert reproduce.main(["PROFILE=full"]) == 2
    assert "needs a GPU" in capsys.readouterr().err


# Processes


def fake(monkeypatch, tmp_path, code):
    """Processes of another kind in place of papermill's: each runs ``code``, with its own name as argument."""

    def start(name, page, values, threads):
        (tmp_path / "runs/reproductions").mkdir(parents=True, exist_ok=True)
        for kind in ("partial.ipynb", "log"):
            (tmp_path / f"runs/reproductions/{name}.{kind}").write_text(f"{kind} of {name}")
        return subprocess.Popen([sys.executable, "-S", "-c", code, name], cwd=tmp_path)

    monkeypatch.setattr(reproduce, "start", start)
    return [(name, Path("page.ipynb"), {"folder": str(tmp_path)}) for name in ("one", "two", "three")]


def test_one_failure_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    jobs = fake(monkeypatch, tmp_path, "import sys; sys.exit(sys.argv[1] == 'two')")
    assert reproduce.run(jobs, 1) == ["two"]
    there = {file.name for file in (tmp_path / "runs/reproductions").glob("*.ipynb")}
    assert there == {"one.ipynb", "three.ipynb", "two.partial.ipynb"}
    assert "two: failed with exit code 1: log of two" in capsys.readouterr().out


def test_as_many_run_at_a_time_as_there_is_room_for(monkeypatch, tmp_path):
    code = "import sys, time; a = time.time(); time.sleep(0.4); print(a, time.time(), file=open(sys.argv[1], 'w'))"
    assert reproduce.run(fake(monkeypatch, tmp_path, code), 2) == []
    times = [tuple(map(float, (tmp_path / name).read_text().split())) for name in ("one", "two", "three")]
    beside = [sum(a < end and start < b for a, b in times) for start, end in times]
    assert max(beside) >= 2 and times[2][0] >= min(times[0][1], times[1][1])


def test_whoever_stops_the_driver_stops_its_processes(monkeypatch, tmp_path):
    jobs, started = fake(monkeypatch, tmp_path, "import time; time.sleep(60)"), []
    start = reproduce.start
    monkeypatch.setattr(reproduce, "start", lambda *job: started.append(start(*job)) or started[-1])
    monkeypatch.setattr(reproduce.News, "tell", lambda self: reproduce.stop())
    with pytest.raises(KeyboardInterrupt):
        reproduce.run(jobs, 3)
    assert len(started) == 3 and all(process.returncode for process in started)


# Digits through papermill: cut, gone on with, skipped


@pytest.fixture
def digits_page(monkeypatch, tmp_path):
    """The first page, up to its run, made to train on digits."""
    page = nbformat.read(ROOT / "book/reproductions/resnet20.ipynb", as_version=4)
    page.cells = [
        cell for cell in page.cells if "parameters" in cell.metadata.get("tags", []) or "chdir(" in cell.source
    ]
    for cell in page.cells:
        cell.source = cell.source.replace('"resnet20", "cifar10"', '"digits_cnn", "digits"')
    assert len(page.cells) == 3 and "digits_cnn" in page.cells[2].source
    nbformat.write(page, tmp_path / "digits.ipynb")
    plan = {"rows": {"model": "digits_cnn", "data": "digits"}, "figures": [], "runs": {}, "claims": []}
    (tmp_path / "published.yml").write_text(yaml.safe_dump({"figures": [], "pages": {"digits": plan}}))
    monkeypatch.setattr(reproduce, "PAGES", tmp_path)
    return tmp_path


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_killed_papermill_run_goes_on_and_a_done_one_is_skipped(digits_page, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    psutil = pytest.importorskip("psutil")  # comes with ipykernel
    words = ["PAGES=digits", "TARGETS=3", "EPOCHS=6", f"FOLDER={digits_page}"]
    [(name, page, values)] = jobs_of(*words)
    run = digits_page / "runs/digits_cnn-digits-csq-w3-smoke-6epochs-seed0"
    process = reproduce.start(name, page, values, 1)
    wait_for(lambda: (run / "checkpoint.pt").exists() or process.poll() is not None)
    assert process.poll() is None, (digits_page / f"runs/reproductions/{name}.log").read_text()
    kernels = psutil.Process(process.pid).children()
    process.kill()
    for kernel in kernels:  # it would end by itself within a second, perhaps with the run
        kernel.kill()
    assert process.wait() < 0
    done = (run / "history.jsonl").read_text().splitlines()
    assert len(done) < 6 and not (digits_page / "book").exists()

    assert reproduce.main(words) == 0, capfd.readouterr()
    history = (run / "history.jsonl").read_text().splitlines()
    assert len(history) == 6
    with_times = [line for line in done if line in history]  # these epochs were not trained a second time
    assert with_times and with_times == history[: len(with_times)]
    notebook = digits_page / "runs/reproductions" / f"{name}.ipynb"
    assert "injected-parameters" in notebook.read_text()
    [file] = (digits_page / "book/results/rows").glob("*.json")
    whole = csq.reproduce("csq", "digits_cnn", "digits", 3.0, epochs=6, progress=False, device="cpu",
                          run_dir=digits_page / "whole", results=digits_page / "whole_rows")  # fmt: skip
    row, first = load_rows(file.parent).iloc[0], file.stat().st_mtime
    assert (row.history_digest, row.accuracy, row.key) == (whole.history_digest, whole.accuracy, whole.key)

    assert reproduce.main(words) == 0
    assert file.stat().st_mtime == first and (run / "history.jsonl").read_text().splitlines() == history
