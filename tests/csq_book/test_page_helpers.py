"""What the text of a page is made with: sentences, and the source of the library."""

from __future__ import annotations

import pytest

import csq_mini as csq
from csq_book import pages
from csq_mini import bits, gates
from csq_mini.planes import Planes, PlaneSum


def test_a_sentence_is_markdown():
    assert pages.say("It lost **3.1 points**.").data == "It lost **3.1 points**."


def test_source_is_the_installed_code_without_docstrings():
    text = pages.source(bits.planes_to_integer, gates.temperature).data
    assert text.startswith("```python\n# csq_mini/bits.py\ndef planes_to_integer(") and text.endswith("```")
    assert "# csq_mini/gates.py\ndef temperature(" in text and '"""' not in text
    code = text.removeprefix("```python\n").removesuffix("```")
    names = {**vars(bits), **vars(gates)}
    exec(code, names)
    assert names["temperature"](0.5, 1.0, 4.0) == gates.temperature(0.5, 1.0, 4.0)


def test_source_names_the_files_of_both_packages():
    assert "# csq_book/pages.py\ndef say(" in pages.source(pages.say).data
    assert "# csq_mini/train/fit.py\ndef fit(" in pages.source(csq.fit).data


def test_docstrings_come_on_request():
    assert '"""' in pages.source(gates.gate, docstring=True).data


def test_classes_methods_and_properties_have_a_source():
    text = pages.source(PlaneSum.forward, Planes.open, Planes.freeze).data
    assert "def forward(" in text and "def open(self)" in text and "def freeze(self" in text
    whole = pages.source(PlaneSum).data
    assert "class PlaneSum" in whole and '"""' not in whole


def test_a_thing_without_source_is_refused():
    with pytest.raises(TypeError):
        pages.source(len)
