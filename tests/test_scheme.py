"""What a quantized layer keeps: the integers of a hardened model are those of its planes, and a change is noticed."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from conftest import KINDS, codes_of, conv_net, converted, layers_of, same_state, shake, snapshot, unchanged
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import csq_mini as csq
from csq_mini.scheme import Scheme


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("frozen", [False, True])
def test_infinity_harden_and_integers_agree(seed, frozen, dtype):
    model = shake(converted(conv_net(bias=True)), seed, zeros=0.3)
    if frozen:
        csq.Budget(model, 2.7).freeze()
        shake(model, seed, zeros=0.3)
    model.to(dtype).eval()
    csq.set_temperature(model, 3.0)
    plain = csq.harden(model)
    csq.set_temperature(model, math.inf)
    x = torch.randn(3, 1, 8, 8, dtype=dtype)
    assert torch.equal(model(x), plain(x))
    for which in (model, plain):
        for name, ints in csq.integers(which).items():
            weight = plain.get_submodule(name).weight
            wide = torch.promote_types(dtype, torch.float32)
            assert torch.equal((ints.codes.to(wide) * ints.step).to(dtype), weight)
            assert ints.codes.dtype == torch.int16 and ints.codes.shape == weight.shape == ints.shape
    assert all(torch.equal(a.codes, b.codes) and a[1:] == b[1:]
               for a, b in zip(csq.integers(model).values(), csq.integers(plain).values()))  # fmt: skip


@given(st.integers(0, 999), st.integers(1, 8), st.floats(-42, 36), st.booleans())
def test_codes_count_in_the_lowest_kept_plane_for_any_scale(seed, planes, exponent, frozen):
    layer = shake(converted(nn.Linear(5, 3), planes), seed, zeros=0.4)
    if frozen:
        csq.Budget(layer, planes / 2, floor=0).freeze()
        shake(layer, seed)
    layer.csq.scale.data.fill_(1.7 * 10**exponent)
    [ints] = csq.integers(layer).values()
    kept = layer.csq.open.nonzero().flatten().tolist()
    low = min(kept, default=0)
    assert torch.equal(ints.codes.long().flatten() * 2**low, codes_of(layer.csq))
    assert ints.planes == tuple(kept) and ints.step == float(layer.csq.scale.detach() / (2**planes - 1)) * 2**low
    assert torch.equal(ints.codes.float() * ints.step, csq.harden(layer).weight)
    assert torch.equal(csq.integers(csq.harden(layer))[""].codes, ints.codes)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_scale_that_training_turned_negative_gives_a_positive_step(frozen):
    model = shake(converted(nn.Linear(6, 5)))
    if frozen:
        csq.Budget(model, 3.0).freeze()
    model.csq.scale.data.mul_(-1)
    csq.set_temperature(model, math.inf)
    for which in (model, csq.harden(model)):
        [ints] = csq.integers(which).values()
        assert torch.equal(ints.codes.float() * ints.step, model.weight)
        assert ints.step > 0 and ints.codes.any()


@pytest.mark.parametrize("scale", [0.0, -0.0, 1e-45])
def test_a_scale_of_zero_hardens_to_zeros_that_can_be_packed(scale, tmp_path):
    model = shake(converted(nn.Linear(6, 5)))
    model.csq.scale.data.fill_(scale)
    plain = csq.harden(model)
    [ints] = csq.integers(plain).values()
    assert not plain.weight.any() and not ints.codes.any() and ints.step > 0
    csq.save_packed(plain, tmp_path / "a")
    assert not csq.load_packed(tmp_path / "a", nn.Linear(6, 5)).weight.any()


def test_a_hardened_layer_keeps_its_codes_step_and_planes_in_one_object():
    model = shake(converted(), zeros=0.3)
    expected = {name: codes_of(planes) for name, planes in layers_of(model).items()}
    plain = csq.harden(model)
    for name, codes in expected.items():
        layer = plain.get_submodule(name)
        assert isinstance(layer.csq, Scheme) and layer.csq.codes.shape == layer.weight.shape
        assert torch.equal(layer.csq.codes.long().flatten() << min(layer.csq.kept, default=0), codes)
        assert csq.integers(plain)[name].codes is layer.csq.codes  # not found again
        assert torch.equal(layer.csq.weight(torch.float32), layer.weight)
        with pytest.raises(dataclasses.FrozenInstanceError):
            layer.csq.step = 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("when", ["before", "after"])
def test_half_precision_keeps_the_integers_of_single(dtype, when):
    model = shake(converted(conv_net(bias=True)))
    expected = csq.integers(model)
    plain = csq.harden(model.to(dtype)) if when == "before" else csq.harden(model).to(dtype)
    found = csq.integers(plain)
    assert all(torch.equal(found[name].codes, ints.codes) for name, ints in expected.items())
    assert plain[0].weight.dtype == dtype and plain.eval()(torch.randn(2, 1, 8, 8, dtype=dtype)).dtype == dtype
    assert csq.report(plain).total.paper_bits == csq.report(model).total.paper_bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("call", [
    csq.integers, csq.report, lambda m: csq.save_packed(m, "never"),
    lambda m: csq.export_onnx(m, torch.zeros(2), "never"),
], ids=["integers", "report", "save_packed", "export_onnx"])  # fmt: skip
def test_a_weight_changed_after_hardening_is_noticed(call, dtype, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("onnxscript")
    plain = csq.harden(shake(converted()).to(dtype))
    plain[6].weight.data[1, 0, 0, 0] += 0.01
    with pytest.raises(ValueError, match="6.weight is no longer step"):
        call(plain)
    assert not list(tmp_path.iterdir())


def test_loading_other_weights_into_a_hardened_model_is_noticed():
    plain, other = csq.harden(shake(converted())), csq.harden(shake(converted(), 1))
    plain.load_state_dict(plain.state_dict())
    assert csq.integers(plain)
    plain.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="0.weight is no longer step"):
        csq.integers(plain)


def test_a_hardened_model_is_a_plain_torch_model():
    model = conv_net(bias=True)
    float_state, kinds = model.state_dict(), [type(m) for m in model.modules()]
    csq.convert(shake(model))
    plain = csq.harden(model)
    assert [type(m) for m in plain.modules()] == kinds
    assert list(plain.state_dict()) == list(float_state)
    assert all(isinstance(m.weight, nn.Parameter) for m in plain.modules() if type(m).__name__ in KINDS)
    plain.load_state_dict(float_state)
    fresh = conv_net(bias=True)
    fresh.load_state_dict(csq.harden(model).state_dict())
    assert same_state(fresh, csq.harden(model))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_of_a_hardened_model_keeps_its_integers(way):
    plain = csq.harden(shake(converted()))
    twin = way(plain)
    assert same_state(twin, plain) and str(csq.report(twin)) == str(csq.report(plain))
    assert all(torch.equal(a.codes, b.codes) and a[1:] == b[1:]
               for a, b in zip(csq.integers(twin).values(), csq.integers(plain).values()))  # fmt: skip


@pytest.mark.parametrize("frozen", [False, True])
def test_hardening_takes_no_memory_of_planes_and_leaves_the_source_alone(frozen):
    model = shake(converted())
    if frozen:
        csq.Budget(model, 3.0).freeze()
    csq.set_temperature(model, 2.0)
    model.train()
    before = snapshot(model)
    plain = csq.harden(model)
    assert unchanged(model, before)
    own = {t.data_ptr() for t in model.state_dict().values() if t.numel()}
    assert not own & {t.data_ptr() for t in plain.state_dict().values() if t.numel()}


def train(model, budget, watch):
    """Five steps; ``watch`` judges the model hard before each of them."""
    optimizer = torch.optim.SGD(csq.parameter_groups(model, 0.05, weight_decay=1e-3), momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for step in range(5):
        csq.set_temperature(model, csq.temperature(step / 20))
        x, y = torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator)
        if watch:
            csq.recalibrate(csq.harden(model), [x]).eval()(x)
            csq.integers(model), csq.report(model), budget.bits()
        loss = F.cross_entropy(model(x), y) + budget.penalty(step / 20)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("frozen", [False, True])
def test_judging_hard_in_mid_training_leaves_it_bit_identical(frozen):
    ends = []
    start = converted()
    for watch in (False, True):
        model = copy.deepcopy(start)
        budget = csq.Budget(model, 3.0)
        if frozen:
            budget.freeze()
        torch.manual_seed(5)
        train(model, budget, watch)
        ends.append((model, torch.get_rng_state()))
    (plain, state), (watched, same) = ends
    assert same_state(plain, watched) and torch.equal(state, same) and not same_state(plain, start)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("what", ["p", "n", "q", "scale"])
def test_a_layer_that_has_diverged_is_not_hardened(what, frozen, bad):
    model = converted(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)))
    if frozen:
        csq.Budget(model, 3.0).freeze()
    logits = getattr(model[1].csq, what)
    if what == "q" and frozen:
        return  # they count no more
    with torch.no_grad():
        logits.view(-1)[-1] = bad
    for call in (csq.harden, csq.report, csq.integers):
        with pytest.raises(ValueError, match=f"layer 1 has diverged: its {what} holds NaN or infinity"):
            call(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_cast_that_changes_the_weight_says_so(dtype):
    exact = csq.harden(converted(nn.Sequential(nn.Linear(8, 4))))
    exact.to(dtype)
    if dtype == torch.float16:  # rounded once from float32: as hardened from a half model
        assert csq.integers(exact)
        exact.float()
    with pytest.raises(ValueError, match=r"0.weight is no longer step \* integer.* or cast to torch.float"):
        csq.integers(exact)
