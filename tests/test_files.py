"""Files that are written whole or not at all."""

import json

import pytest

from csq_mini.files import write_json, write_whole


class Stop(Exception):
    pass


def fail(file):
    file.write(b"sec")
    raise Stop


def test_a_file_is_replaced_whole(tmp_path):
    for content in (b"first", b"second, and longer"):
        write_whole(tmp_path / "f", lambda file, content=content: file.write(content))
        assert (tmp_path / "f").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path):
    write_whole(tmp_path / "f", lambda file: file.write(b"first"))
    with pytest.raises(Stop):
        write_whole(tmp_path / "f", fail)
    assert (tmp_path / "f").read_bytes() == b"first"


def test_a_write_that_fails_leaves_no_file_of_that_name(tmp_path):
    with pytest.raises(Stop):
        write_whole(tmp_path / "f", fail)
    assert not (tmp_path / "f").exists()


def test_json_is_written_to_be_read(tmp_path):
    write_json(tmp_path / "j", {"a": [1, None]})
    text = (tmp_path / "j").read_text()
    assert json.loads(text) == {"a": [1, None]} and text.endswith("}\n") and "\n  " in text
