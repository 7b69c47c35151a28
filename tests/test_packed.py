"""Packed files: exact, small, and the same bytes each time."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import hardened, small
from safetensors import safe_open
from torch import nn

import csq_mini as csq
from csq_mini.experiments import pretrained
from csq_mini.packed import save
from csq_mini.packed.format import DTYPES, PackedLayer, pack_bits, unpack_bits
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
    with pytest.raises(ValueError, match="changed or cast"):
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


# Several names, states that are no tensors, other wrappings


class Twice(nn.Module):
    """One layer under two names, or two layers that began as copies."""

    def __init__(self, shared=True):
        super().__init__()
        self.a, self.c = nn.Linear(6, 6), nn.Linear(6, 2)
        self.b = self.a if shared else nn.Linear(6, 6)

    def forward(self, x):
        return self.c(self.b(torch.relu(self.a(x))))


class LM(nn.Module):
    """An embedding whose table is the head's weight too, or not."""

    def __init__(self, tied=True):
        super().__init__()
        self.wte, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, x):
        return self.head(self.wte(x))


def bits(model):
    return [csq.integers(model)[name].codes for name in sorted(csq.integers(model))]


def test_a_shared_layer_is_stored_once_and_comes_back_under_both_names(tmp_path):
    exact, x = hardened(Twice()), torch.randn(3, 6)
    csq.save_packed(exact, tmp_path / "a")
    packed = csq.verify_packed(tmp_path / "a")
    assert set(packed.layers) == {"a", "c"} and set(packed.floats) == {"a.bias", "c.bias"}
    assert packed.tied == {"b.weight": "a.weight", "b.bias": "a.bias"} and "format 2" in str(packed)
    shares, apart = (csq.load_packed(tmp_path / "a", Twice(shared)) for shared in (True, False))
    assert torch.equal(shares(x), exact(x)) and torch.equal(apart(x), exact(x))
    assert len(bits(shares)) == 2 and torch.equal(apart.b.csq.codes, exact.a.csq.codes) and len(bits(apart)) == 3
    csq.save_packed(shares, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_tied_weight_is_stored_once_under_the_name_of_its_layer(tmp_path):
    exact, x = hardened(LM(tied=False)), torch.arange(9)
    exact.head.weight = exact.wte.weight
    del exact.head.csq
    exact.register_parameter("again", exact.wte.weight)  # the first in the state_dict, and no layer's
    csq.save_packed(exact, tmp_path / "a")
    packed = csq.verify_packed(tmp_path / "a")
    assert set(packed.layers) == {"wte"} and packed.tied == {"again": "wte.weight", "head.weight": "wte.weight"}
    shares, apart = LM(), LM(tied=False)
    shares.register_parameter("again", shares.wte.weight)
    apart.register_parameter("again", nn.Parameter(torch.zeros(9, 4)))
    for model, layers in ((shares, {"wte"}), (apart, {"wte", "head"})):
        again = csq.load_packed(tmp_path / "a", model)
        assert torch.equal(again(x), exact(x)) and set(csq.integers(again)) == layers
        assert torch.equal(again.again, exact.wte.weight)


def whole_file(path):
    """What a packed file says of itself, and its tensors as bytes."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["csq_mini"]) | tensors


def test_a_file_without_tied_names_is_the_one_that_earlier_versions_wrote(tmp_path):
    old = pretrained.WEIGHTS / "resnet20-cifar10-3bit.safetensors"  # made before recipes had masks
    recipe = csq.Recipe(**{**pretrained.row(old.stem).recipe, "skip": ()})
    csq.save_packed(csq.load_packed(old), tmp_path / "a", recipe)
    then, now = (whole_file(path) for path in (old, tmp_path / "a"))
    for digest in ("recipe", "sha256"):  # of the recipe, which has got fields since, and of all
        assert then.pop(digest) != now.pop(digest)
    assert then == now and "format 1" in str(csq.verify_packed(old))


class Noted(nn.Linear):
    def __init__(self, note):
        super().__init__(8, 4)
        self.note = note

    def get_extra_state(self):
        return {"note": self.note}

    def set_extra_state(self, state):
        self.note = state["note"]


def test_what_is_no_tensor_is_left_out_with_a_word_and_kept_by_the_model(tmp_path):
    exact = hardened(nn.Sequential(Noted("v1")))
    with pytest.warns(UserWarning, match="0._extra_state of Sequential's state is no tensor: a packed file leaves it"):
        csq.save_packed(exact, tmp_path / "a")
    again, x = csq.load_packed(tmp_path / "a", nn.Sequential(Noted("v2"))), torch.randn(2, 8)
    assert again[0].note == "v2" and torch.equal(again(x), exact(x))
    with pytest.warns(UserWarning, match="is no tensor"):
        save.check_packable(exact)


def test_names_of_compiled_parts_do_not_reach_the_file(tmp_path):
    def net(compiled):
        block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        return nn.Sequential(torch.compile(block, backend="eager") if compiled else block, nn.Linear(8, 2))

    for saved, loaded in ((True, False), (False, True), (True, True)):
        exact, x = hardened(net(saved)), torch.randn(2, 8)
        csq.save_packed(exact, tmp_path / "a")
        assert set(csq.verify_packed(tmp_path / "a").layers) == {"0.0", "1"}
        again = csq.load_packed(tmp_path / "a", net(loaded))
        assert torch.equal(again(x), exact(x)) and len(csq.integers(again)) == 2


class Buffered(nn.Sequential):
    def __init__(self, buffer):
        super().__init__(nn.Linear(4, 3))
        self.register_buffer("extra", buffer)


@pytest.mark.filterwarnings("ignore:.*support is experimental", "ignore:.*quantized tensor creation")
def test_every_type_of_torch_is_stored_or_refused_by_name(tmp_path):
    exact, refused = hardened(Buffered(torch.zeros(3))), []
    for dtype in sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str):
        if str(dtype)[6] == "q":  # "torch.qint8": no tensor of it is made by its type alone
            exact.extra = torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)
        else:
            exact.extra = torch.empty(3, dtype=dtype)
        if dtype in set(DTYPES.values()):
            exact.extra.fill_(1)
            csq.save_packed(exact, tmp_path / "a")
            again = csq.load_packed(tmp_path / "a", Buffered(torch.zeros(3).to(dtype)))
            assert again.extra.dtype == dtype and again.extra.tolist() == exact.extra.tolist()
            continue
        refused.append(dtype)
        for refuse in (lambda: save.check_packable(exact), lambda: csq.save_packed(exact, tmp_path / "none")):
            with pytest.raises(ValueError, match="cannot hold extra, which is torch.*: convert it to one of float64, "):
                refuse()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert {torch.complex64, torch.float8_e4m3fn, torch.uint16, torch.uint32, torch.qint8} <= set(refused)


def test_what_no_file_can_hold_is_refused_before_anything_is_written(tmp_path):
    hooked, named, deep = (hardened(nn.Sequential(nn.Linear(4, 3))) for _ in range(3))
    hooked._register_state_dict_hook(lambda m, state, *_: {f"net.{key}": value for key, value in state.items()})
    named.add_module("red\x1b[31m", nn.Linear(2, 2))
    deep.register_buffer("cube", torch.zeros([1] * 9))
    sparse = hardened(Buffered(torch.zeros(3)))
    sparse.extra = sparse.extra.to_sparse()
    texts = {"state_dict has no 0.weight: a state_dict hook renames": hooked, "a name that no module can have": named,
             "'cube' has no sound shape": deep, "extra, which has no values yet or is sparse": sparse}  # fmt: skip
    for message, model in texts.items():
        with pytest.raises(ValueError, match=message):
            csq.save_packed(model, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_and_a_folder_in_the_way_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*none: make it first, or give another path"):
        csq.save_packed(hardened(small()), tmp_path / "none" / "a")
    with pytest.raises(IsADirectoryError, match="is a folder: give the path of a file"):
        csq.save_packed(hardened(small()), tmp_path)
    assert not list(tmp_path.iterdir())
