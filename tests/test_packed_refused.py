"""Packed files that are damaged, hostile or do not fit: refused with a reason, and the model stays as it was."""

import hashlib
import json
import os
import random
import struct
import tracemalloc

import pytest
import torch
from conftest import hardened, small
from torch import nn

import csq_mini as csq
from csq_mini.packed import verify
from csq_mini.packed.format import KEY, NO_DIGEST


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    csq.save_packed(hardened(small()), path)
    return path


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


def renamed(entries, old, new):
    return {new if name == old else name: value for name, value in entries.items()}


def tied(names):
    return lambda header, about, payload: (header, {**about, "format": 2, "tied": names}, payload)


HOSTILE = {
    "newer": (change("about", "", "format", 3), "newer"),
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
    "dots in a layer's name": (lambda h, a, p: (
        renamed(h, "4.weight", ".fc.weight"), {**a, "layers": renamed(a["layers"], "4", ".fc")}, p), "no module can"),
    "colours in a tensor's name": (lambda h, a, p: (renamed(h, "1.bias", "\x1b[31m1"), a, p), "no module can have"),
    "colours in the library's name": (change("about", "", "library", "\x1b[31m1"), "no text"),
    "colours in the architecture": (
        change("about", "", "architecture", {"name": "\x1b[31m", "arguments": {}}), "whole numbers"),
    "activation that is none": (change("about", "", "activations", {"x": 3}), "'x' has no alpha"),
    "tied names in an old format": (change("about", "", "tied", {"a": "1.bias"}), "not those of format 1"),
    "a new format without tied names": (change("about", "", "format", 2), "not those of format 2"),
    "tied to nothing": (tied({"a": "b"}), "'a' is tied to 'b'"),
    "tied twice": (tied({"1.weight": "1.bias"}), "'1.weight' is tied to '1.bias'"),
    "tied to a list": (tied({"a": [1]}), "is tied to"),
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
        verify.parse(blob)
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


# Paths that are no files, and files that would never end


@pytest.mark.parametrize("read", [csq.verify_packed, csq.load_packed])
def test_only_a_regular_file_is_read_and_no_further_than_its_header_says(read, file, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="is a device or a pipe"):
            read(path)
    with pytest.raises(IsADirectoryError):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")
    tracemalloc.start()
    for start, size, message in ((b"", 2**41, "larger than"), (b"", 2**34, "is not JSON"),
                                 (file.read_bytes(), 2**34, "belong to no tensor")):  # fmt: skip
        (tmp_path / "sparse").write_bytes(start)
        os.truncate(tmp_path / "sparse", size)
        with pytest.raises(csq.PackedFileError, match=f"sparse: .*{message}"):
            read(tmp_path / "sparse")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


# Models that cannot hold what the file says: refused, and as they were


class Tied(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.wte, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        if tied:
            self.head.weight = self.wte.weight


class Rounds(nn.Linear):
    """Keeps another weight than it is given."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight.clone()


class Sealed(nn.Linear):
    """Cannot be written to: every row of its weight is one piece of memory."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.weight = nn.Parameter(self.weight.detach()[:1].expand(sizes[::-1]), requires_grad=False)


@pytest.mark.parametrize("model, message", [
    (Tied(True), "head.weight and wte.weight are one tensor in the model and two in the file: give one"),
    (Tied(False).to("meta"), "wte.weight of the model has no values yet"),
    (nn.Sequential(nn.LazyLinear(3)), "0.weight of the model has no values yet"),
    (Tied(False).to(torch.float8_e5m2), "cannot hold wte.weight, which is torch.float8_e5m2"),
], ids=["tied", "meta", "lazy", "float8"])  # fmt: skip
def test_a_model_that_cannot_hold_two_weights_is_refused_before_it_changes(model, message, tmp_path):
    csq.save_packed(hardened(Tied(False)), tmp_path / "a")
    before = {k: v.clone() for k, v in model.state_dict().items() if not nn.parameter.is_lazy(v)}
    with pytest.raises(csq.PackedFileError, match=message):
        csq.load_packed(tmp_path / "a", model)
    after = model.state_dict()
    assert all(v.is_meta or torch.equal(v, after[k]) for k, v in before.items())
    assert not any(hasattr(m, "csq") for m in model.modules())


@pytest.mark.parametrize("kind, message", [(Rounds, "does not keep what 1.weight is set to"), (Sealed, "not fit the")])
def test_a_model_that_holds_something_else_afterwards_is_never_returned(kind, message, tmp_path):
    csq.save_packed(hardened(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))), tmp_path / "a")
    model = nn.Sequential(nn.Linear(4, 4), kind(4, 4))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(csq.PackedFileError, match=message):
        csq.load_packed(tmp_path / "a", model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(hasattr(m, "csq") for m in model.modules())


def test_whatever_a_model_of_somebodys_raises_it_is_said_that_it_does_not_fit(file):
    class Broken(nn.Sequential):
        def state_dict(self, *args, **options):
            raise KeyError("mine")

    with pytest.raises(csq.PackedFileError, match="does not fit the model: .*mine"):
        csq.load_packed(file, Broken())


def test_loading_into_a_hardened_model_leaves_nothing_of_its_old_scheme(tmp_path):
    csq.save_packed(hardened(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))), tmp_path / "both")
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    csq.convert(model, skip="1")
    csq.save_packed(csq.harden(model), tmp_path / "one")
    quantized = csq.load_packed(tmp_path / "both", nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    assert set(csq.integers(csq.load_packed(tmp_path / "one", quantized))) == {"0"}
