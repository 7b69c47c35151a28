"""Fetching data sets, against a server on this machine that hands out small archives of the true layout."""

import re
import runpy
import shutil
import socket
import sys
from pathlib import Path

import pytest
from archives import FOLDER, damage, publish, put, server, torchvision_class, tree, write

import csq_mini as csq
from csq_mini import cli
from csq_mini.data import fetch

SCRIPTS = Path(__file__).parent.parent / "data_scripts"
NAMES = list(FOLDER)


@pytest.fixture
def loopback(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("CSQ_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with server() as running:
        yield running


def serve(monkeypatch, loopback, name):
    files, loopback.files = publish(monkeypatch, name, loopback.address)
    return files


def run(monkeypatch, capsys, name, *arguments):
    """Exit code, printed lines and the last line of errors of data_scripts/<name>.py."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    out, err = capsys.readouterr()
    return stop.value.code, out, err.strip().splitlines()[-1] if err.strip() else ""


@pytest.mark.parametrize("name", NAMES)
def test_a_download_is_whole_and_a_second_run_downloads_nothing(name, loopback, monkeypatch, capsys, tmp_path):
    files = serve(monkeypatch, loopback, name)
    code, out, _ = run(monkeypatch, capsys, name)
    assert code == 0 and "is ready and whole" in out and out.count("\n") == 1
    there = tree(tmp_path / "data" / FOLDER[name])
    assert {k: there[k] for k in files} == files
    assert [p.name for p in (tmp_path / "data").iterdir()] == [FOLDER[name].partition("/")[0]]
    assert getattr(csq.data, name)(valid=10).name == name
    train, test = (torchvision_class(name)("data", train=train, download=False) for train in (True, False))
    assert len(train) > len(test) > 0
    asked = len(loopback.asked)
    code, out, _ = run(monkeypatch, capsys, name)
    assert code == 0 and "there already and whole" in out and len(loopback.asked) == asked


@pytest.mark.parametrize("before", ["nothing", "damaged", "partly there"])
@pytest.mark.parametrize("name", NAMES)
def test_what_was_damaged_or_partly_there_is_replaced(name, before, loopback, monkeypatch, capsys, tmp_path):
    files = serve(monkeypatch, loopback, name)
    *_, first, last = files
    spoilt = {"nothing": {}, "damaged": {**files, first: damage(files[first])}, "partly there": {last: files[last]}}
    put(tmp_path / "sets", name, {**spoilt[before], "notes.txt": b"mine"})
    assert run(monkeypatch, capsys, name, "--root", "sets")[0] == 0
    there = tree(tmp_path / "sets" / FOLDER[name])
    assert {k: there[k] for k in files} == files and there["notes.txt"] == b"mine"


FAULTS = {
    "cut": r"came from http://127.0.0.1:\d+/\S+ is cut or damaged .*run this again.*--from DIR",
    "damaged": r"came from http://127.0.0.1:\d+/\S+ is cut or damaged .*run this again.*--from DIR",
    "silent": r"cannot download .* from http://127.0.0.1:\d+/\S+ timed out; without network .*--from DIR",
    "absent": r"cannot download .* from http://127.0.0.1:\d+/\S+ Not Found; without network .*--from DIR",
    "gone": r"cannot download .* from http://127.0.0.1:\d+/\S+ .*refused; without network .*--from DIR",
}


@pytest.mark.parametrize("before", ["nothing", "damaged"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_a_download_that_fails_changes_nothing(name, fault, before, loopback, monkeypatch, capsys, tmp_path):
    files = serve(monkeypatch, loopback, name)
    root = tmp_path / "data"
    root.mkdir()
    if before == "damaged":
        put(root, name, {k: damage(v) for k, v in files.items()})
    whole, (*_, last) = tree(root), loopback.files
    loopback.faults[last] = fault
    if fault == "absent":
        del loopback.files[last]
    if fault == "gone":
        loopback.shutdown()
        loopback.server_close()
    monkeypatch.setattr(fetch, "TIMEOUT", 0.1)
    code, out, error = run(monkeypatch, capsys, name)
    assert (code, out) == (2, "") and re.search(FAULTS[fault], error), error
    assert tree(root) == whole and not list(root.glob("*.partial"))
    with pytest.raises((ValueError, FileNotFoundError), match=f"data_scripts/{name}.py"):
        getattr(csq.data, name)()


def test_a_download_waits_as_long_as_before_for_others(loopback, monkeypatch):
    serve(monkeypatch, loopback, "cifar10")
    monkeypatch.setattr(fetch, "TIMEOUT", 5.0)
    fetch.fetch("cifar10")
    assert socket.getdefaulttimeout() is None


def test_an_interrupted_download_leaves_nothing(monkeypatch, capsys, tmp_path, loopback):
    def interrupt(*arguments):
        Path(arguments[1]).mkdir()
        (Path(arguments[1]) / "half").write_text("half")
        raise KeyboardInterrupt

    publish(monkeypatch, "cifar10")
    monkeypatch.setattr("torchvision.datasets.utils.download_url", interrupt)
    assert run(monkeypatch, capsys, "cifar10") == (130, "", "stopped: nothing was changed")
    assert tree(tmp_path) == {}


# A copy that is on this machine


@pytest.mark.parametrize("kind", ["root", "folder", "folder of archives", "archive"])
@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_taken_without_network(name, kind, monkeypatch, capsys, tmp_path, loopback):
    files, archives = publish(monkeypatch, name)
    copy = write(tmp_path / "copy", archives) if "archive" in kind else put(tmp_path / "copy", name, files)
    copy = copy / FOLDER[name] if kind == "folder" else copy
    if kind == "archive" and name != "fashion_mnist":  # which is four files
        copy = copy / next(iter(archives))
    before = tree(tmp_path / "copy")
    code, out, error = run(monkeypatch, capsys, name, "--root", "sets", "--from", copy)
    assert code == 0, error
    there = tree(tmp_path / "sets" / FOLDER[name])
    assert {k: there[k] for k in files} == files and tree(tmp_path / "copy") == before
    assert len(torchvision_class(name)("sets", train=True, download=False)) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_copy_is_refused_and_named(name, monkeypatch, capsys, tmp_path, loopback):
    files, archives = publish(monkeypatch, name)
    *_, victim = files
    copy = put(tmp_path / "copy", name, {**files, victim: damage(files[victim])})
    put(tmp_path / "data", name, {victim: b"old"})
    before = tree(tmp_path)
    code, _, error = run(monkeypatch, capsys, name, "--from", copy)
    assert code == 2 and f"{victim} is damaged; try another copy" in error
    archive, content = next(iter(archives.items()))
    if name != "fashion_mnist":
        write(tmp_path / "packed", {archive: damage(content)})
        code, _, error = run(monkeypatch, capsys, name, "--from", tmp_path / "packed")
        assert code == 2 and f"{archive} is damaged (its checksum is not the published one); try another copy" in error
        shutil.rmtree(tmp_path / "packed")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_that_lacks_something_is_refused_and_named(name, monkeypatch, capsys, tmp_path, loopback):
    files, archives = publish(monkeypatch, name)
    *rest, victim = files
    copy = put(tmp_path / "copy", name, {k: files[k] for k in rest})
    code, _, error = run(monkeypatch, capsys, name, "--from", copy)
    assert code == 2 and f"lacks {victim}; try another copy" in error
    code, _, error = run(monkeypatch, capsys, name, "--from", tmp_path / "nowhere")
    assert code == 2 and "there is no" in error and "nowhere" in error
    (tmp_path / "empty").mkdir()
    code, _, error = run(monkeypatch, capsys, name, "--from", tmp_path / "empty")
    assert code == 2 and FOLDER[name] in error and all(archive in error for archive in archives)


def test_a_whole_archive_serves_where_the_folder_beside_it_is_not(monkeypatch, capsys, tmp_path, loopback):
    files, archives = publish(monkeypatch, "cifar10")
    *_, victim = files
    copy = put(tmp_path / "copy", "cifar10", {k: v for k, v in files.items() if k != victim})
    write(copy, archives)
    assert run(monkeypatch, capsys, "cifar10", "--from", copy)[0] == 0


@pytest.mark.parametrize("name", [*NAMES, "image_folder"])
def test_every_script_explains_itself(name, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, name, "--help")
    assert code == 0 and "--from DIR" in out and "--root DIR" in out and "on disk" in out.replace("\n", " ")


def test_a_set_that_nobody_publishes_is_refused():
    with pytest.raises(ValueError, match="unknown published data set 'cifar'; did you mean cifar10"):
        fetch.fetch("cifar")


# csq-mini data


def test_the_list_says_what_is_there_and_what_to_do(monkeypatch, capsys, tmp_path, loopback):
    for name in NAMES:
        files, _ = publish(monkeypatch, name)
        if name != "cifar100":
            put(tmp_path, name, files)
    (tmp_path / "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz").write_bytes(b"cut")
    (tmp_path / "FashionMNIST/raw/t10k-images-idx3-ubyte.gz").unlink()
    (tmp_path / ".cifar10-abc.partial").mkdir()
    before = tree(tmp_path)
    assert cli.main(["data", "--root", str(tmp_path)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["data"] == f"data root: {tmp_path}" and "embedded" in lines["digits"]
    assert "whole" in lines["cifar10"] and "0.4 MB" in lines["cifar10"]
    assert "missing" in lines["cifar100"] and f"data_scripts/cifar100.py --root {tmp_path}" in lines["cifar100"]
    assert "t10k-images-idx3-ubyte.gz is missing, t10k-labels-idx1-ubyte.gz is damaged" in lines["fashion_mnist"]
    assert "python data_scripts/fashion_mnist.py" in lines["fashion_mnist"]
    assert "missing" in lines["image_folder"] and "--from DIR" in lines["image_folder"]
    assert "delete it" in lines[f"{tmp_path}/.cifar10-abc.partial"] and tree(tmp_path) == before


def test_the_list_of_a_root_that_is_not_there_or_no_folder(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CSQ_DATA", str(tmp_path / "sets"))
    assert cli.main(["data"]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'sets'} (not there yet)" in out and out.count("missing") == 4
    assert "--root" not in out  # the root is the one that scripts take by themselves
    (tmp_path / "file").write_text("")
    assert cli.main(["data", "--root", str(tmp_path / "file")]) == 2
    assert "is not a folder: give another --root" in capsys.readouterr().err
    assert not (tmp_path / "sets").exists()
