"""Packed files: exact, small, and the same bytes each time."""

import math

import numpy as np
import pytest
import torch
from conftest import hardened, small
from torch import nn

import csq_mini as csq
from csq_mini.packed import save
from csq_mini.packed.format import PackedLayer, pack_bits, unpack_bits
from csq_mini.scheme import Scheme

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


def test_a_model_comes_back_exactly_by_its_architecture_or_into_a_given_one(tmp_path):
    torch.manual_seed(0)
    exact, x = hardened(csq.models.resnet20()), torch.randn(2, 3, 32, 32)
    written = csq.save_packed(exact, tmp_path / "a")
    assert written == (tmp_path / "a").stat().st_size
    into = csq.models.resnet20()
    for again in (csq.load_packed(tmp_path / "a"), csq.load_packed(tmp_path / "a", into)):
        assert torch.equal(again(x), exact(x)) and not again.training
        assert csq.report(again).rows == csq.report(exact).rows
        for name, ints in csq.integers(exact).items():
            assert torch.equal(csq.integers(again)[name].codes, ints.codes)
        csq.save_packed(again, tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert into is again


def test_the_file_is_as_small_as_its_bits(tmp_path):
    exact = hardened(csq.models.resnet20())
    csq.save_packed(exact, tmp_path / "a")
    packed, total = csq.verify_packed(tmp_path / "a"), csq.report(exact).total
    payload = sum(len(layer.payload) for layer in packed.layers.values())
    assert payload <= 1.02 * total.stored_bits * total.weights / 8
    assert total.original_bytes / packed.file_bytes >= 7.5
    rest = sum(len(data) for _, _, data in packed.floats.values())
    assert packed.file_bytes == payload + rest + packed.header_bytes
    assert "compression on disk" in str(packed) and str(payload) in str(packed)
    assert packed.report().total == total


@pytest.mark.parametrize("bits", range(1, 10))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000, 2**20 + 3])
def test_bits_come_back_at_every_width_and_size(bits, count):
    indices = np.random.default_rng(0).integers(0, 2**bits, count).astype(np.uint16)
    payload = pack_bits(indices, bits)
    assert len(payload) == math.ceil(count * bits / 8)
    assert np.array_equal(unpack_bits(payload.tobytes(), count, bits), indices)


def test_the_bits_stand_where_the_format_says():
    assert pack_bits(np.array([1, 2, 3, 0, 5], np.uint16), 3).tolist() == [0b11010001, 0b1010000]


@pytest.mark.parametrize("planes", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (0, 4), (7, 1)])
def test_every_width_of_layer_and_empty_and_single_ones(tmp_path, planes, shape):
    torch.manual_seed(planes)
    exact = hardened(nn.Sequential(nn.Linear(*shape[::-1])), None, planes)
    csq.save_packed(exact, tmp_path / "a")
    again = csq.load_packed(tmp_path / "a", nn.Sequential(nn.Linear(*shape[::-1])))
    assert torch.equal(again[0].weight, exact[0].weight) and again[0].csq.kept == exact[0].csq.kept


def test_a_mask_with_a_hole_is_stored_as_a_table(tmp_path):
    codes = torch.tensor([129, -129, 1, 0, -1, 128, 127, -128, -127] * 3, dtype=torch.int16).view(3, 9)
    layer = nn.Linear(9, 3, bias=False)
    layer.csq = Scheme(8, (0, 7), (), 0.25, codes)
    layer.weight.data.copy_(codes * 0.25)
    csq.save_packed(layer, tmp_path / "a")
    packed = csq.verify_packed(tmp_path / "a").layers[""]
    assert packed.bits == 4 and packed.values == (-129, -128, -127, -1, 0, 1, 127, 128, 129)
    assert torch.equal(packed.codes(), codes) and torch.equal(packed.weight(), layer.weight)


def test_a_packed_layer_gives_the_scheme_that_was_saved(tmp_path):
    exact = hardened(csq.models.digits_cnn(), 2.5)
    csq.save_packed(exact, tmp_path / "a")
    for name, layer in csq.verify_packed(tmp_path / "a").layers.items():
        scheme, saved = layer.scheme(), exact.get_submodule(name).csq
        assert scheme == saved and torch.equal(scheme.codes, saved.codes) and scheme.codes.dtype == torch.int16
        assert layer.kept == saved.kept and layer.planes == saved.planes
        assert layer.limit >= int(saved.codes.abs().max())


@pytest.mark.parametrize("dtype, when", [
    (torch.float16, "before"), (torch.float16, "after"), (torch.bfloat16, "before"), (torch.bfloat16, "after"),
    (torch.float64, "before"),  # not after: products of float32 are no exact multiples in float64
])  # fmt: skip
def test_other_types_of_weights_come_back_too(tmp_path, dtype, when):
    exact = hardened(small().to(dtype), 3.0) if when == "before" else hardened(small(), 3.0).to(dtype)
    csq.save_packed(exact, tmp_path / "a")
    again, x = csq.load_packed(tmp_path / "a", small(1).to(dtype)), torch.randn(2, 1, 4, 4, dtype=dtype)
    assert torch.equal(again(x), exact(x))
    for name, ints in csq.integers(exact).items():
        assert torch.equal(csq.integers(again)[name].codes, ints.codes)


def test_quantized_activations_come_back(tmp_path):
    model = csq.models.digits_cnn()
    csq.quantize_activations(model, 4, skip="stem.*")
    exact, x = hardened(model), torch.rand(2, 1, 8, 8)
    csq.save_packed(exact, tmp_path / "a")
    assert torch.equal(csq.load_packed(tmp_path / "a")(x), exact(x))
    with pytest.raises(csq.PackedFileError, match="quantize_activations"):
        csq.load_packed(tmp_path / "a", csq.models.digits_cnn())


def test_only_exact_models_are_saved_and_nothing_is_half_written(tmp_path, monkeypatch):
    model = small()
    with pytest.raises(ValueError, match="no quantized layer"):
        csq.save_packed(model, tmp_path / "a")
    csq.convert(model)
    with pytest.raises(ValueError, match="harden"):
        csq.save_packed(model, tmp_path / "a")
    exact = csq.harden(model)
    with torch.no_grad():
        exact[0].weight.add_(1e-3)
    with pytest.raises(ValueError, match="changed after hardening"):
        csq.save_packed(exact, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_recipe_leaves_its_digest(tmp_path):
    recipe = csq.recipes.get("digits")
    csq.save_packed(hardened(small()), tmp_path / "a", recipe)
    assert csq.verify_packed(tmp_path / "a").recipe == save.recipe_digest(recipe)


@pytest.mark.parametrize("planes, kept, filled, limit", [
    ("..1F.1..", (2, 4, 5), (4,), 13), ("........", (), (), 0), ("1.......", (7,), (), 1), ("F1", (0, 1), (1,), 3),
    ("1......1", (0, 7), (), 129), ("1" * 8, tuple(range(8)), (), 255),
])  # fmt: skip
def test_the_letters_of_the_planes_say_what_is_kept_and_how_large_a_code_may_be(planes, kept, filled, limit):
    layer = PackedLayer("fc", (0, 3), "F32", planes, 0.5, 0, range(1), memoryview(b""))
    scheme = layer.scheme()
    assert (scheme.available, scheme.kept, scheme.filled) == (len(planes), kept, filled)
    assert scheme.planes == planes and layer.kept == kept and layer.limit == limit
