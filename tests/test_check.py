"""What is refused, and in which words."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from csq_mini.check import check_finite, matching, number, select, unknown, whole

NAMES = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "fc"]


@pytest.mark.parametrize("value", [0, 3, 10**30, np.int64(4), np.uint8(5)])
def test_a_whole_number_comes_back_as_an_int(value):
    found = whole("seed", value)
    assert type(found) is int and found == value


@pytest.mark.parametrize("value", [-1, 2.0, "3", None, True, np.True_, math.nan, Fraction(2), torch.tensor(2), [1]])
def test_what_is_no_whole_number_is_named(value):
    with pytest.raises(ValueError) as error:
        whole("seed", value)
    assert str(error.value) == f"seed must be a whole number of at least 0, got {value!r}"


def test_a_range_has_both_its_ends_and_the_hint_stands_at_the_end():
    assert [whole("planes", k, 1, 8) for k in (1, 8)] == [1, 8]
    for k in (0, 9):
        with pytest.raises(ValueError, match=f"^planes must be a whole number from 1 to 8, got {k}: use fewer$"):
            whole("planes", k, 1, 8, hint=": use fewer")
    with pytest.raises(ValueError, match="from 1 to 1281166, got 1281167$"):
        whole("valid", 1281167, 1, 1281166)


@pytest.mark.parametrize("value", [0, 2.5, Fraction(1, 3), np.float32(0.1), np.int32(4), 1e308])
def test_a_number_comes_back_as_a_float(value):
    found = number("lr", value)
    assert type(found) is float and found == float(value)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, -math.inf, "0.1", None, True, 1j, Decimal("0.1")])
def test_what_is_no_finite_number_is_named(value):
    with pytest.raises(ValueError) as error:
        number("lr", value)
    assert str(error.value) == f"lr must be a finite number of at least 0, got {value!r}"


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats())
def test_a_number_is_refused_exactly_outside_its_range(a, b, value):
    low, high = sorted((a, b))
    if low <= value <= high:
        assert number("t", value, low, high) == value
    else:
        with pytest.raises(ValueError, match=r"^t must be a finite number from .* to .*, got .*: like so$"):
            number("t", value, low, high, hint=": like so")


def test_an_unknown_name_gets_near_ones_or_all():
    assert unknown("recipe", "digts", ["vgg", "digits"]) == "unknown recipe 'digts'; did you mean digits?"
    assert unknown("split", "tain", ["train", "rain", "test"]).endswith("did you mean train or rain?")
    assert unknown("recipe", 7, ["vgg", "digits"]) == "unknown recipe 7; there are: digits, vgg"


@pytest.mark.parametrize("pattern, hits", [
    ("fc", ["fc"]), ("*", NAMES), ("layer1.*", NAMES[1:4]), ("layer1.?.conv1", [NAMES[1], NAMES[3]]),
    ("layer1.[!0].*", [NAMES[3]]),
])  # fmt: skip
def test_a_pattern_matches_whole_dotted_names(pattern, hits):
    assert matching("skip", pattern, NAMES) == hits


@pytest.mark.parametrize("pattern, near", [("layer1.0.conv", r"layer1\.0\.conv\d"), ("zzz", "conv1, .*")])
def test_a_pattern_that_matches_nothing_gets_near_names(pattern, near):
    with pytest.raises(ValueError, match=f"floor pattern '{pattern}' matches no layer; near names: {near}.*whole"):
        matching("floor", pattern, NAMES)
    with pytest.raises(ValueError, match=r"near names: none\."):
        matching("floor", pattern, [])


def test_a_generator_of_names_is_read_once():
    with pytest.raises(ValueError, match="near names: conv1"):
        matching("skip", "conv", iter(NAMES))


def test_select_takes_each_thing_once_by_its_first_name():
    a, b = object(), object()
    named = {"one": a, "two": b, "again": a}
    assert list(select("skip", named, ())) == ["one", "two"]
    assert select("skip", named, "two") == {"one": a}
    assert select("skip", named, "again") == select("skip", named, ["one"]) == {"two": b}  # by either name
    assert select("skip", named, ("on?", "t*")) == {}
    with pytest.raises(ValueError, match="'three' matches no layer"):
        select("skip", named, ("one", "three"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_that_are_no_numbers_are_counted(dtype):
    check_finite(torch.full((3,), torch.finfo(dtype).max, dtype=dtype))
    check_finite(torch.zeros(0, dtype=dtype))
    with pytest.raises(ValueError, match="^2 of 4 weights are NaN or infinite: .*checkpoint.*learning rate"):
        check_finite(torch.tensor([1.0, math.nan, 0.0, -math.inf], dtype=dtype))


@pytest.mark.parametrize("name", ["csq", "float_class"])
def test_a_layer_with_a_name_of_ours_is_refused_before_anything_changes(name):
    import csq_mini as csq

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    setattr(model[1], name, "mine")
    with pytest.raises(ValueError, match=rf"1 \(Linear\) has an attribute '{name}'.*rename it.*skip=\('1',\)"):
        csq.convert(model)
    assert type(model[0]) is nn.Linear and getattr(model[1], name) == "mine"
    assert csq.convert(model, skip="1") == ["0"]
