import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from csq_mini.bits import (
    float_to_planes,
    integer_to_planes,
    place_values,
    planes_to_integer,
    quantization_scale,
    round_to_grid,
    signed_digits,
    unit_step,
)

WIDTHS = range(1, 9)
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
NOT_PLANES = [0, 9, -1, True, 2.0, "8", None, math.nan]


def floats(width):
    return st.floats(width=width, allow_nan=False, allow_infinity=False, allow_subnormal=True)


@st.composite
def weights(draw, dtype):
    """Tensors of any shape: one magnitude, or wildly mixed ones, subnormal, huge, or all zero."""
    shape = draw(SHAPES)
    count = math.prod(shape)
    width = 32 if dtype == torch.float32 else 64
    kind = draw(st.sampled_from(["mixed", "one magnitude", "zeros"]))
    if kind == "zeros":
        return torch.zeros(shape, dtype=dtype)
    if kind == "mixed":
        values = draw(st.lists(floats(width), min_size=count, max_size=count))
    else:
        exponent = draw(st.integers(-44, 37) if width == 32 else st.integers(-320, 307))
        unit = st.floats(-1, 1)
        values = [u * 10.0**exponent for u in draw(st.lists(unit, min_size=count, max_size=count))]
    return torch.tensor(values, dtype=dtype).reshape(shape)


@pytest.mark.parametrize("planes", WIDTHS)
def test_every_integer_goes_through_its_planes_and_back(planes):
    codes = torch.arange(-(2**planes) + 1, 2**planes)
    positive, negative = integer_to_planes(codes, planes)
    assert positive.shape == negative.shape == (planes, len(codes))
    assert positive.dtype == negative.dtype == torch.bool
    again = planes_to_integer(positive, negative)
    assert again.dtype == torch.int16 and torch.equal(again.long(), codes)
    assert not (positive & negative).any()
    assert not positive[:, codes <= 0].any() and not negative[:, codes >= 0].any()


@given(st.data(), st.integers(1, 8), SHAPES, st.sampled_from([torch.int8, torch.int16, torch.int32, torch.int64]))
def test_integers_of_any_shape_and_type_round_trip(data, planes, shape, dtype):
    top = min(2**planes - 1, torch.iinfo(dtype).max)
    count = math.prod(shape)
    values = data.draw(st.lists(st.integers(-top, top), min_size=count, max_size=count))
    codes = torch.tensor(values, dtype=dtype).reshape(shape)
    assert torch.equal(planes_to_integer(*integer_to_planes(codes, planes)).long(), codes.reshape(-1).long())


def test_the_least_int8_needs_all_eight_planes():
    codes = torch.tensor([-128, 127], dtype=torch.int8)
    assert planes_to_integer(*integer_to_planes(codes, 8)).tolist() == [-128, 127]


@given(st.data(), st.integers(1, 8))
def test_planes_go_through_their_integer_and_back_when_no_weight_has_both_signs(data, planes):
    bits = data.draw(st.lists(st.lists(st.booleans(), min_size=planes, max_size=planes), max_size=6))
    positive = torch.tensor(bits, dtype=torch.bool).reshape(-1, planes).T
    again, negative = integer_to_planes(planes_to_integer(positive, torch.zeros_like(positive)), planes)
    assert torch.equal(again, positive) and not negative.any()


@pytest.mark.parametrize("planes", WIDTHS)
def test_a_code_beyond_the_planes_is_refused(planes):
    for code in (2**planes, -(2**planes)):
        with pytest.raises(ValueError, match=rf"code {code} .* {planes} planes.*{2**planes - 1}.*more planes"):
            integer_to_planes(torch.tensor([0, code]), planes)


@pytest.mark.parametrize("planes", NOT_PLANES)
def test_planes_must_be_an_integer_from_one_to_eight(planes):
    for call in (float_to_planes, integer_to_planes):
        with pytest.raises(ValueError, match=f"from 1 to 8, got {planes!r}"):
            call(torch.zeros(2, dtype=torch.long), planes)


@pytest.mark.parametrize("planes", WIDTHS)
def test_place_values_double_from_one(planes):
    assert place_values(planes, torch.zeros(1, dtype=torch.float64)).tolist() == [2.0**b for b in range(planes)]


def worst_error(weight, planes):
    """Largest |weight - planes' weight| in steps, in float64, against the exact step scale / (2^N - 1)."""
    scale, positive, negative = float_to_planes(weight, planes)
    step = scale.double() / (2**planes - 1)
    codes = planes_to_integer(positive, negative)
    return float(((weight.double().reshape(-1) / step) - codes).abs().max()) if weight.numel() else 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(data=st.data(), planes=st.integers(1, 8))
@example(data=None, planes=8)
def test_rounding_is_off_by_half_a_step_at_most(dtype, data, planes):
    weight = torch.tensor([3e38, -1e-45, 0.0], dtype=dtype) if data is None else data.draw(weights(dtype))
    scale, positive, negative = float_to_planes(weight, planes)
    # The step itself is rounded: by one part in 2^24 (2^53), or by half the least subnormal.
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    step = scale.double() / (2**planes - 1)
    slack = 2**planes * max(torch.finfo(dtype).eps, float(tiny / 2 / step))
    assert worst_error(weight, planes) <= 0.5 + slack
    assert positive.shape == negative.shape == (planes, weight.numel()) and scale.shape == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 0.1, 3e-3, 1e-3])
def test_half_precision_weights_round_to_half_a_step_too(dtype, size):
    weight = (torch.linspace(-size, size, 999)).to(dtype)
    assert worst_error(weight, 8) <= 0.5 + 1e-4


@given(st.data(), st.integers(1, 8))
def test_float_weights_on_the_grid_come_back_exactly(data, planes):
    top = 2**planes - 1
    codes = data.draw(st.lists(st.integers(-top, top), min_size=1, max_size=20))
    weight = torch.tensor([top, *codes]) * 0.25  # so that the scale is top / 4, and the step exactly 1/4
    scale, positive, negative = float_to_planes(weight, planes)
    assert torch.equal(unit_step(scale, planes) * planes_to_integer(positive, negative), weight)


def test_the_largest_weight_gets_the_largest_code():
    scale, positive, negative = float_to_planes(torch.tensor([0.1, -0.7, 0.3]), 4)
    assert scale == torch.tensor(0.7) and planes_to_integer(positive, negative).tolist() == [2, -15, 6]


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), (5,), (2, 3)])
def test_nothing_and_zeros_get_scale_one_and_no_bits(shape):
    scale, positive, negative = float_to_planes(torch.zeros(shape), 8)
    assert scale == 1 and not positive.any() and not negative.any()
    assert quantization_scale(torch.zeros(shape)) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_no_number_is_refused_and_counted(bad):
    with pytest.raises(ValueError, match="2 of 5 weights are NaN or infinite.*checkpoint"):
        float_to_planes(torch.tensor([1.0, bad, 2.0, bad, 0.0]), 8)


@given(st.lists(floats(32), min_size=1, max_size=8), st.integers(0, 8), st.integers(0, 8))
def test_the_grid_of_some_planes_holds_the_nearest_multiple_in_range(values, low, high):
    low, high = sorted((low, high))
    weight, step = torch.tensor(values), torch.tensor(2.0**-3)
    codes = round_to_grid(weight, step, low, high)
    grid = torch.arange(-(2 ** (high - low)) + 1, 2 ** (high - low)) * 2**low
    nearest = (weight.double().view(-1, 1) / step.double() - grid).abs().amin(1)
    assert codes.dtype == torch.int16 and torch.isin(codes, grid).all()
    assert torch.equal((weight.double() / step.double() - codes).abs(), nearest)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rounding_leaves_the_weight_as_it_was(dtype):
    weight = torch.randn(50).to(dtype)
    before = weight.clone()
    round_to_grid(weight, torch.tensor(0.01), 0, 8), float_to_planes(weight, 8)
    assert torch.equal(weight, before)


def test_the_grid_of_a_zero_step_is_zero():
    assert not round_to_grid(torch.ones(3), torch.tensor(0.0), 0, 8).any()


@pytest.mark.parametrize("planes", WIDTHS)
def test_signed_digits_are_the_code_and_every_run_from_the_top_rounds_it(planes):
    most = 2**planes - 1
    codes = torch.arange(-most, most + 1)
    positive, negative = signed_digits(codes, planes)
    assert not (positive & negative).any()
    assert torch.equal(planes_to_integer(positive, negative), codes.short())
    for low in range(planes):  # planes low and above
        kept = torch.arange(planes).view(-1, 1) >= low
        grid = planes_to_integer(positive & kept, negative & kept)
        assert torch.equal(grid % 2**low, torch.zeros_like(grid))
        nearest = torch.minimum((codes.abs() % 2**low), 2**low - codes.abs() % 2**low)
        inside = codes.abs() <= 2**planes - 2**low  # beyond, the grid ends
        assert torch.equal((grid - codes).abs()[inside], nearest[inside])


def test_signed_digits_take_any_shape_and_refuse_what_does_not_fit():
    positive, negative = signed_digits(torch.tensor([[7, -7], [0, 3]]), 4)
    assert positive.shape == negative.shape == (4, 4)
    assert positive[:, 0].tolist() == [False, False, False, True] and negative[:, 0].tolist() == [True] + [False] * 3
    with pytest.raises(ValueError, match="code 16 does not fit into 4 planes"):
        signed_digits(torch.tensor([16]), 4)
