"""Files that are written whole or not at all, and read to a limit."""

import json
import os
import stat
import threading
import zipfile

import pytest
import torch

from csq_mini.files import open_regular, read_json, read_state, read_whole, write_json, write_state, write_whole


class Stop(Exception):
    pass


def failing(error):
    def fail(file):
        file.write(b"sec")
        raise error

    return fail


def test_a_file_is_replaced_whole(tmp_path):
    for content in (b"first", b"second, and longer"):
        write_whole(tmp_path / "f", lambda file, content=content: file.write(content))
        assert (tmp_path / "f").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, SystemExit, RuntimeError, OSError(28, "No space left")])
@pytest.mark.parametrize("there", [True, False])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(error, there, tmp_path):
    if there:
        write_whole(tmp_path / "f", lambda file: file.write(b"first"))
    with pytest.raises(error if isinstance(error, type) else OSError):
        write_whole(tmp_path / "f", failing(error))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == ({"f": b"first"} if there else {})


def test_json_is_written_to_be_read(tmp_path):
    write_json(tmp_path / "j", {"a": [1, None]})
    text = (tmp_path / "j").read_text()
    assert read_json(tmp_path / "j") == json.loads(text) == {"a": [1, None]} and text.endswith("}\n") and "\n  " in text


def test_a_file_gets_the_mode_that_open_gives(tmp_path):
    with open(tmp_path / "plain", "wb"):
        pass
    write_whole(tmp_path / "f", lambda file: None)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    (tmp_path / "f").chmod(0o600)  # a file that is there keeps its own
    write_whole(tmp_path / "f", lambda file: None)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600


def test_links_are_not_followed(tmp_path):
    (tmp_path / "precious").write_bytes(b"mine")
    for name in ("f", "f.partial"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    write_whole(tmp_path / "f", lambda file: file.write(b"new"))
    assert (tmp_path / "precious").read_bytes() == b"mine" and (tmp_path / "f").read_bytes() == b"new"
    assert not (tmp_path / "f").is_symlink() and (tmp_path / "f.partial").is_symlink()


@pytest.mark.parametrize("below, kind, message", [
    ("", IsADirectoryError, "is a folder: give the path of a file"),
    ("no/f", FileNotFoundError, "there is no folder .*no: make it first, or give another path"),
    ("file/f", NotADirectoryError, "cannot write .*file/f: Not a directory; give another path"),
    ("pipe", OSError, "pipe is a device or a pipe"),
])  # fmt: skip
def test_a_path_that_cannot_be_written_is_named_with_the_way_out(below, kind, message, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(kind, match=message):
        write_whole(tmp_path / below, lambda file: file.write(b"new"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]
    assert (tmp_path / "file").read_bytes() == b"mine" and not (tmp_path / "pipe").is_file()


class FullDisk:
    """A file that takes a few bytes."""

    def __init__(self, file):
        self.file, self.room = file, 100

    def write(self, content):
        self.room -= len(content)
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(content)

    def flush(self):
        pass


def test_a_full_disk_is_an_os_error_that_names_the_path_even_where_torch_hides_it(tmp_path):
    text = "cannot write .*f: No space left on device; give another path, or free some space"
    for write in (lambda file: FullDisk(file).write(bytes(999)), lambda file: torch.save([1] * 99, FullDisk(file))):
        with pytest.raises(OSError, match=text) as caught:
            write_whole(tmp_path / "f", write)
        assert caught.value.errno == 28 and not list(tmp_path.iterdir())


def test_writers_of_one_path_never_tear_it_nor_disturb_each_other(tmp_path):
    faults, path = [], tmp_path / "f"
    write_whole(path, lambda file: file.write(b"0" * 9999))

    def write(digit):
        try:
            for _ in range(60):
                write_whole(path, lambda file: [file.write(digit * 3333) for _ in range(3)])
        except OSError as error:
            faults.append(error)

    writers = [threading.Thread(target=write, args=(b"%d" % i,)) for i in range(4)]
    [writer.start() for writer in writers]
    while any(writer.is_alive() for writer in writers):
        content = path.read_bytes()
        if len(content) != 9999 or len(set(content)) != 1:
            faults.append(content)
    assert not faults and [p.name for p in tmp_path.iterdir()] == ["f"]


# Reading


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # a plain open would wait for ever
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match=f"{path} is a device or a pipe"):
            open_regular(path)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_whole(tmp_path, 9)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")


def test_no_more_is_read_than_the_limit(tmp_path):
    with open(tmp_path / "f", "wb") as file:
        file.truncate(2**41)  # sparse
    with pytest.raises(ValueError, match="f is larger than such a file can be"):
        read_json(tmp_path / "f")


def test_deep_json_is_refused(tmp_path):
    (tmp_path / "j").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "j")


def read(path, sealed=True):
    with open(path, "rb") as file:
        return read_state(file, sealed)


def test_a_sealed_state_is_an_ordinary_file_of_torch(tmp_path):
    write_state(tmp_path / "s.pt", {"w": torch.arange(5)})
    for state in (read(tmp_path / "s.pt"), torch.load(tmp_path / "s.pt"), torch.load(tmp_path / "s.pt", mmap=True)):
        assert torch.equal(state["w"], torch.arange(5))
    assert zipfile.ZipFile(tmp_path / "s.pt").testzip() is None


def test_every_flipped_bit_and_every_cut_of_a_sealed_state_is_refused(tmp_path):
    write_state(tmp_path / "s.pt", {"w": torch.arange(5)})
    whole = (tmp_path / "s.pt").read_bytes()
    for place in range(0, 8 * len(whole), 13):
        other = bytearray(whole)
        other[place // 8] ^= 1 << place % 8
        (tmp_path / "t.pt").write_bytes(other)
        with pytest.raises(ValueError, match="sha-256"):
            read(tmp_path / "t.pt")
    for size in range(0, len(whole), 101):
        (tmp_path / "t.pt").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="sha-256"):
            read(tmp_path / "t.pt")


def test_a_state_without_a_seal_is_read_where_none_is_needed_but_never_unpacked_beyond_its_size(tmp_path):
    torch.save({"w": torch.zeros(2**20)}, tmp_path / "s.pt")
    assert len(read(tmp_path / "s.pt", sealed=False)["w"]) == 2**20
    with pytest.raises(ValueError, match="it has no sha-256"):
        read(tmp_path / "s.pt")
    with zipfile.ZipFile(tmp_path / "s.pt") as old, zipfile.ZipFile(tmp_path / "z.pt", "w", 8) as new:
        [new.writestr(name, old.read(name)) for name in old.namelist()]
    with pytest.raises(ValueError, match="it is compressed"):
        read(tmp_path / "z.pt", sealed=False)
