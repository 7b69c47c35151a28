"""Packed files: exact, small, the same bytes each time, and nothing wrong is ever accepted."""

from __future__ import annotations

import hashlib
import json
import math
import random
import struct
import tracemalloc

import pytest
import torch
from torch import nn

import csq_mini as csq
from csq_mini.packed import format as packed_format
from csq_mini.packed import save as packing
from csq_mini.conversion import Integers, Scheme
from csq_mini.packed.format import KEY, NO_DIGEST, pack_bits, unpack_bits


def hardened(model, target=2.0, planes=8):
    csq.convert(model, planes=planes)
    if target is not None:
        csq.Budget(model, target).freeze()
    return csq.harden(model).eval()


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    csq.save_packed(hardened(small()), path)
    return path


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
    import numpy as np

    indices = np.random.default_rng(0).integers(0, 2**bits, count).astype(np.uint16)
    payload = pack_bits(indices, bits)
    assert len(payload) == math.ceil(count * bits / 8)
    assert np.array_equal(unpack_bits(payload.tobytes(), count, bits), indices)


def test_the_bits_stand_where_the_format_says():
    import numpy as np

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
    codes = torch.tensor([129, -129, 1, 0, -1, 128, 127, -128, -127] * 3, dtype=torch.int16)
    scheme = Scheme(8, (0, 7), (), 0.25)
    state = {"weight": codes * 0.25}
    blob = packing.pack(state, {"": scheme}, {"": Integers(codes, 0.25, (0, 7), codes.shape)})
    (tmp_path / "a").write_bytes(blob)
    layer = csq.verify_packed(tmp_path / "a").layers[""]
    assert layer.bits == 4 and layer.values == (-129, -128, -127, -1, 0, 1, 127, 128, 129)
    assert torch.equal(layer.codes(), codes) and torch.equal(layer.weight(), state["weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_of_weights_come_back_too(tmp_path, dtype):
    exact = hardened(small().to(dtype), 3.0)
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
    assert csq.verify_packed(tmp_path / "a").recipe == packing.recipe_digest(recipe)


# Files that are wrong


def parts(blob):
    (length,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + length])
    return header, json.loads(header["__metadata__"][KEY]), blob[8 + length :]


def rebuilt(header, about, payload):
    """A file with another header whose digest is right all the same: what a hostile hand can make."""
    about = {**about, "sha256": NO_DIGEST}
    header = {**header, "__metadata__": {KEY: json.dumps(about)}}
    text = json.dumps(header).encode()
    blob = struct.pack("<Q", len(text)) + text + payload
    return blob.replace(NO_DIGEST.encode(), hashlib.sha256(blob).hexdigest().encode(), 1)


def test_the_rebuilder_makes_sound_files(file):
    blob = file.read_bytes()
    file.write_bytes(rebuilt(*parts(blob)))
    assert csq.load_packed(file, small(1)) is not None


def change(kind, name, key, value):
    def apply(header, about, payload):
        place = {"tensor": header, "layer": about["layers"], "about": {"": about}}[kind][name]
        place[key] = value(place[key]) if callable(value) else value
        return header, about, payload

    return apply


def two_at_once(header, about, payload):
    header["0.weight"]["data_offsets"] = list(header["4.weight"]["data_offsets"])
    return header, about, payload


def no_layer(header, about, payload):
    about["layers"] = {}
    return header, about, payload


HOSTILE = {
    "newer": (change("about", "", "format", 2), "newer"),
    "no version": (change("about", "", "format", True), "no version"),
    "huge shape": (change("layer", "0", "shape", [2**40, 2**40]), "too large"),
    "shape and payload": (change("layer", "0", "shape", [3, 1, 3, 4]), "payload"),
    "negative shape": (change("layer", "0", "shape", [-3, 1, 3, 3]), "sound shape"),
    "deep shape": (change("layer", "0", "shape", [1] * 9), "sound shape"),
    "bits": (change("layer", "0", "bits", 12), "stored bits"),
    "a bool as bits": (change("layer", "0", "bits", True), "stored bits"),
    "step": (change("layer", "0", "step", -1.0), "no step"),
    "step of text": (change("layer", "0", "step", "1"), "no step"),
    "step too large": (change("layer", "0", "step", 1e300), "no step"),
    "no number": (change("layer", "0", "step", float("nan")), "no step"),
    "planes": (change("layer", "0", "planes", "11x"), "odd planes"),
    "too few planes": (change("layer", "4", "planes", ".......1"), "cannot hold"),
    "low": (change("layer", "4", "low", -300), "out of range"),
    "weight type": (change("layer", "0", "dtype", "I32"), "type"),
    "unknown field": (lambda h, a, p: (
        h, {**a, "layers": {**a["layers"], "0": {**a["layers"]["0"], "more": 1}}}, p), "other fields"),
    "size of a tensor": (change("tensor", "1.bias", "shape", [4]), "lies about its size"),
    "type of a tensor": (change("tensor", "1.bias", "dtype", "F4"), "unknown type"),
    "place of a tensor": (change("tensor", "1.bias", "data_offsets", [0, 2**60]), "no place"),
    "overlap": (two_at_once, "overlaps|lies"),
    "gap at the end": (lambda h, a, p: (h, a, p + b"more"), "belong to no tensor"),
    "truncated": (lambda h, a, p: (h, a, p[:-1]), "lies about its size"),
    "no layer": (no_layer, "no quantized layer"),
    "layer without payload": (
        lambda h, a, p: (h, {**a, "layers": {**a["layers"], "9": a["layers"]["0"]}}, p), "payload"),
    "architecture": (change("about", "", "architecture", {"name": "resnet20", "arguments": {"num_classes": 2**40}}),
                     "architecture"),
    "activations": (change("about", "", "activations", {"2": 99}), "1 to 8"),
    "library": (change("about", "", "library", None), "no text"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_with_a_reason_and_the_model_stays(file, case):
    edit, says = HOSTILE[case]
    file.write_bytes(rebuilt(*edit(*parts(file.read_bytes()))))
    model = small(1)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(csq.PackedFileError, match=says):
        csq.load_packed(file, model)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not hasattr(model[0], "csq")


@pytest.mark.parametrize("blob, says", [
    (b"", "too short"),
    (b"12345678901", "does not fit"),
    (struct.pack("<Q", 2**63) + b"{}" * 20, "does not fit"),
    (struct.pack("<Q", 2) + b"[]", "not a JSON object"),
    (struct.pack("<Q", 4) + b"{\xff\xff}", "not JSON"),
    (struct.pack("<Q", 40000) + b"[" * 40000, "not JSON"),
    (struct.pack("<Q", 2) + b"{}", "not one that csq.save_packed wrote"),
    (struct.pack("<Q", 17) + b'{"a": 1, "a": 2}\n', "twice"),
])  # fmt: skip
def test_what_is_no_packed_file_is_refused(tmp_path, blob, says):
    (tmp_path / "a").write_bytes(blob)
    with pytest.raises(csq.PackedFileError, match=says):
        csq.verify_packed(tmp_path / "a")


def test_an_ordinary_safetensors_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file(small().state_dict(), tmp_path / "a")
    with pytest.raises(csq.PackedFileError, match="not one that"):
        csq.verify_packed(tmp_path / "a")


def test_a_layer_of_one_value_may_claim_any_shape_and_costs_nothing(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    nn.init.zeros_(model[0].weight)
    csq.save_packed(hardened(model, None), tmp_path / "a")
    header, about, payload = parts((tmp_path / "a").read_bytes())
    about["layers"]["0"]["shape"] = [2**20, 2**20]
    (tmp_path / "a").write_bytes(rebuilt(header, about, payload))
    tracemalloc.start()
    csq.verify_packed(tmp_path / "a")
    with pytest.raises(csq.PackedFileError, match="does not fit"):
        csq.load_packed(tmp_path / "a", nn.Sequential(nn.Linear(4, 4, bias=False)))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("make, says", [
    (lambda: nn.Sequential(nn.Conv2d(1, 3, 3, bias=False)), "the model lacks"),
    (lambda: nn.Sequential(*small(), nn.Linear(5, 5)), "and the file lacks"),
    (lambda: small().half(), "F32 .* F16"),
    (lambda: nn.Sequential(*list(small())[:4], nn.Linear(11, 5)), r"\[5, 12\] in the file"),
])  # fmt: skip
def test_a_model_that_does_not_fit_is_named_and_left_alone(file, make, says):
    with pytest.raises(csq.PackedFileError, match=says):
        csq.load_packed(file, make())
    model = small()
    csq.convert(model)
    with pytest.raises(csq.PackedFileError, match="before csq.convert"):
        csq.load_packed(file, model)
    with pytest.raises(csq.PackedFileError, match="load_packed\\(path, model\\)"):
        csq.load_packed(file)


def mutated(blob, header, rng, number):
    out = bytearray(blob)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        place = rng.randrange(min(header, len(out)) if number % 3 else len(out))
        kind = rng.randrange(5)
        if kind == 0:
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[place] = rng.choice(b'0123456789[]{}",:-e.')
        elif kind == 2:
            del out[place : place + rng.randrange(1, 9)]
        elif kind == 3:
            out[place:place] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
        else:
            del out[place:]
        if not out:
            break
    return bytes(out)


def refused(blob):
    try:
        packed_format._parse(blob)
    except csq.PackedFileError:
        return True
    return False


def test_twenty_thousand_mutated_files_are_refused_without_growing_memory(file):
    blob, rng = file.read_bytes(), random.Random(0)
    header = 8 + struct.unpack("<Q", blob[:8])[0]
    peaks = []
    for number in range(20_000):
        if number in (500, 19_500):  # tracing is slow, so it watches five hundred at both ends
            tracemalloc.start()
        other = mutated(blob, header, rng, number)
        assert other == blob or refused(other), number
        if number in (1000, 19_999):
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert max(peaks) < 30 * len(blob) + 2**20 and peaks[1] < 1.5 * peaks[0] + 2**16


def test_mutated_contents_with_a_right_digest_are_refused_or_say_the_same_as_a_sound_file_would(file):
    """Past the digest only documented errors come out, whatever the header says."""
    blob, rng, accepted = file.read_bytes(), random.Random(1), 0
    odd = [None, True, -1, 0, 1, 2**31, 2**63, 1e308, "", "a", [], {}, [0], [2**50], {"a": 1}, 0.5, float("inf")]
    for _ in range(1000):
        header, about, payload = parts(blob)
        place = rng.choice([about, *about["layers"].values(), *(v for k, v in header.items() if k[0] != "_")])
        place[rng.choice(list(place))] = rng.choice(odd)
        model = small(1)
        file.write_bytes(rebuilt(header, about, payload))
        try:
            csq.load_packed(file, model)
            accepted += 1
        except csq.PackedFileError:
            pass
    assert accepted < 400  # fields that only inform, such as the recipe, may change
