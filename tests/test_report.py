"""The report: what a scheme costs, in bits and bytes, worked out by hand."""

import math

import pytest
import torch
from conftest import conv_net, converted, layers_of, set_codes, shake
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import csq_mini as csq
from csq_mini.report import LayerReport, stored_bits


@pytest.mark.parametrize("codes, bits", [
    ([], 0), ([7], 0), ([3, 3, 3], 0), ([0, 1], 1), ([-1, 0, 1], 2), ([-3, 3, 0, 1, 2, -1, -2], 3),
    ([-1, 1], 1), ([0, 255], 1), ([-255, 255, 0], 2), (list(range(-255, 256)), 9), (list(range(-128, 128)), 8),
])  # fmt: skip
def test_stored_bits_is_the_smaller_of_span_and_table(codes, bits):
    assert stored_bits(torch.tensor(codes, dtype=torch.int16)) == bits


@given(st.lists(st.integers(-255, 255), min_size=1, max_size=30))
def test_stored_bits_can_tell_all_codes_apart(codes):
    bits = stored_bits(torch.tensor(codes))
    distinct = len(set(codes))
    assert 2**bits >= distinct and bits <= 9
    assert bits == 0 or 2 ** (bits - 1) < min(distinct, max(codes) - min(codes) + 1)


def test_a_mask_with_a_hole_stores_a_table_of_four_bits_not_a_span_of_nine():
    layer = converted(nn.Linear(9, 1), masks="free")
    planes = layer.csq
    wanted = [128 * a + b for a in (-1, 0, 1) for b in (-1, 0, 1)]
    with torch.no_grad():
        planes.p.fill_(-0.5), planes.n.fill_(-0.5), planes.q.fill_(-0.5)
        planes.q[0] = planes.q[7] = 0.5
        for i in range(9):
            high, low = i // 3 - 1, i % 3 - 1
            for plane, sign in ((7, high), (0, low)):
                if sign:
                    (planes.p if sign > 0 else planes.n)[plane, i] = 0.5
    codes = csq.integers(layer)[""].codes
    assert codes.flatten().tolist() == wanted and (int(codes.max() - codes.min())).bit_length() == 9
    [row] = csq.report(layer).rows
    assert (row.planes, row.paper_bits, row.stored_bits, row.bytes) == ("1......1", 2, 4, math.ceil(9 * 4 / 8))


@pytest.mark.parametrize("planes", range(1, 9))
def test_contiguous_planes_need_one_bit_more_for_the_sign(planes):
    layer = converted(nn.Linear(2 ** (planes + 1) - 1, 1), planes)
    set_codes(layer.csq, torch.arange(-(2**planes) + 1, 2**planes))
    [row] = csq.report(layer).rows
    assert (row.paper_bits, row.stored_bits) == (planes, planes + 1)


def small():
    """Two layers whose figures can be worked out by hand: 12 weights on 2 planes and 4 on none."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(4, 1, bias=False))
    csq.convert(model, masks="free")
    with torch.no_grad():
        model[0].csq.q.copy_(torch.tensor([-1.0, -1, -1, -1, -1, -1, 1, 1]))
        set_codes(model[0].csq, 64 * torch.tensor([-3, -2, -1, 0, 1, 2, 3, 0, 0, 0, 0, 0]))
        model[2].csq.q.fill_(0.0)
    return model


@pytest.mark.parametrize("view", [lambda m: m, csq.harden, torch.compile])
def test_totals_are_those_worked_out_by_hand(view):
    report = csq.report(view(small()))
    first, second = report.rows
    assert vars(first) == dict(
        name="0", kind="Linear", shape=(3, 4), weights=12, planes="11......", paper_bits=2, filled=0, stored_bits=3,
        bytes=5, share=0.75,
    )  # fmt: skip
    assert (second.planes, second.share) == ("........", 0.25)
    assert second.paper_bits == second.stored_bits == second.bytes == 0
    t = report.total
    assert (t.layers, t.weights, t.paper_bits, t.stored_bits) == (2, 16, 24 / 16, 36 / 16)
    assert t.bytes == 5 + 0 + 2 * 4  # a float32 step each
    assert t.float_values == 3 + 4 * 3 + 1  # bias; batch norm's four vectors and its counter
    assert t.float_bytes == 4 * 3 + 4 * 12 + 8 and t.original_bytes == 4 * 16 + t.float_bytes
    assert t.paper_compression == 32 / 1.5 and t.compression == t.original_bytes / (t.bytes + t.float_bytes)


@pytest.mark.parametrize("target", [1.0, 2.5])
def test_a_frozen_model_and_its_hardened_copy_have_one_report(target):
    model = shake(converted(conv_net(bias=True)))
    csq.Budget(model, target).freeze()
    soft, hard = csq.report(model), csq.report(csq.harden(model))
    assert soft.rows == hard.rows and soft.total == hard.total
    assert soft.total.original_bytes == sum(t.nbytes for t in csq.harden(model).state_dict().values())


def test_the_original_size_is_that_of_the_float_state_dict():
    model = conv_net(bias=True)
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert csq.report(converted(model)).total.original_bytes == size


def test_text_has_a_line_a_layer_and_both_compressions():
    model = shake(converted())
    text = str(csq.report(model))
    lines = text.splitlines()
    assert all(any(line.split()[:1] == [name] for line in lines) for name in layers_of(model))
    assert "paper bits" in text and "stored bits" in text and "x smaller" in text and "F filled" in text
    assert max(map(len, lines)) <= 120
    assert "(model)" in str(csq.report(converted(nn.Linear(2, 2))))


def test_pandas_has_a_row_a_layer_and_a_column_a_field():
    report = csq.report(shake(converted()))
    table = report.to_pandas()
    assert list(table.columns) == list(LayerReport.__dataclass_fields__)
    assert table.to_dict("records") == [vars(row) for row in report.rows]
    assert table["share"].sum() == pytest.approx(1)


def test_html_is_a_table_with_every_layer_and_the_totals():
    report = csq.report(shake(converted()))
    html = report._repr_html_()
    assert html.count("<tr") == len(report.rows) + 1
    assert all(f"<code>{row.planes}</code>" in html and f"{row.share:.1%}" in html for row in report.rows)
    assert all(line in html for line in report.summary())


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("shape", [(0, 3), (3, 3)])
def test_a_model_of_nothing_or_of_zeros_has_a_report(shape):
    layer = converted(nn.Linear(shape[1], shape[0]))
    layer.csq.q.data.fill_(-1)
    total = csq.report(csq.harden(layer)).total
    assert (total.paper_bits, total.stored_bits, total.paper_compression) == (0, 0, math.inf)
    assert str(csq.report(layer)) and csq.report(layer)._repr_html_()


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a&b", "\x1b[31mred", "two\nlines", "ünïcode 層"])
def test_a_name_from_elsewhere_is_shown_and_never_runs(name, tmp_path):
    model = nn.Sequential()
    model.add_module(name, nn.Linear(4, 4))
    model.register_parameter(name + "w", nn.Parameter(torch.ones(2, 2)))
    csq.convert(model, skip="")
    exact = csq.harden(model)
    reports = [csq.report(model), csq.report(exact)]
    if name.isprintable():
        csq.save_packed(exact, tmp_path / "named.safetensors")
        reports.append(csq.verify_packed(tmp_path / "named.safetensors").report())
    else:
        with pytest.raises(ValueError, match="has a name that no module can have"):
            csq.save_packed(exact, tmp_path / "named.safetensors")
    for report in reports:
        text, page = str(report), report._repr_html_()
        assert "<script" not in page and "a&b" not in page
        assert all(c.isprintable() or c == "\n" for c in text + page)
        assert len(text.splitlines()) == len(str(csq.report(converted(nn.Sequential(nn.Linear(4, 4))))).splitlines())
    assert name.isprintable() == (name in str(csq.report(exact)))
