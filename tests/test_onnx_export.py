"""ONNX files: the same integers, the same outputs, nothing of the machine that wrote them."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest
import torch
from conftest import hardened
from torch import nn

import csq_mini as csq

onnx = pytest.importorskip("onnx", reason='needs pip install -e ".[export]"')
ort = pytest.importorskip("onnxruntime", reason='needs pip install -e ".[export]"')
from csq_mini.modules import outputs_of  # noqa: E402
from csq_mini.onnx_export import Exported, ExportedLayer, codes_of  # noqa: E402


def run(path, x):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "resnet.onnx"
    model = csq.pretrained("resnet20-cifar10-2bit")
    return model, path, csq.export_onnx(model, torch.randn(2, 3, 32, 32), path)


def test_onnxruntime_computes_what_torch_computes_at_any_batch_size(resnet):
    model, path, _ = resnet
    for batch in (1, 5):
        x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            wanted = model(x)
        found = run(path, x)
        assert torch.allclose(wanted, found, rtol=1e-4, atol=1e-4)
        assert torch.equal(wanted.argmax(1), found.argmax(1))


def test_real_images_get_the_same_class(resnet):
    try:
        data = csq.data.cifar10(limit=512)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    model, path, _ = resnet
    x, y = next(data.batches("test", 256))
    with torch.no_grad():
        wanted = model(x)
    found = run(path, x)
    assert torch.equal(wanted.argmax(1), found.argmax(1)) and torch.allclose(wanted, found, rtol=1e-3, atol=1e-3)
    assert (found.argmax(1) == y).float().mean() > 0.8


def test_codes_and_types_are_those_of_the_model(resnet):
    model, path, said = resnet
    proto, there = onnx.load(path), codes_of(path)
    types = {t.name: t.data_type for t in proto.graph.initializer}
    assert {name + ".weight" for name in csq.integers(model)} == set(there)
    for layer in said.layers:
        ints = csq.integers(model)[layer.name]
        assert torch.equal(there[layer.name + ".weight"], ints.codes.long())
        assert types[f"{layer.name}.weight.codes"] == getattr(onnx.TensorProto, f"INT{layer.onnx_bits}")
        low, high = int(ints.codes.min()), int(ints.codes.max())
        half = layer.onnx_bits // 2
        assert layer.onnx_bits == 2 or not (-(2 ** (half - 1)) <= low and high < 2 ** (half - 1))  # the narrowest
        assert layer.extra_bytes >= 0
    assert {layer.onnx_bits for layer in said.layers} == {2, 4, 8}
    assert said.file_bytes == path.stat().st_size and "INT2" in str(said)


def test_eight_planes_and_a_sign_take_sixteen_bits(tmp_path):
    layer = nn.Linear(8, 4)
    csq.convert(layer)
    layer = csq.harden(layer)
    said = csq.export_onnx(layer, torch.randn(2, 8), tmp_path / "a.onnx")
    assert [part.onnx_bits for part in said.layers] == [16] and "INT16" in str(said)
    [codes] = codes_of(tmp_path / "a.onnx").values()
    assert int(codes.abs().max()) == 255 and torch.equal(codes, csq.integers(layer)[""].codes.long())


def test_batch_norm_stays_and_only_standard_operators_are_used(resnet):
    proto = onnx.load(resnet[1])
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("BatchNormalization") == 21 and kinds.count("DequantizeLinear") == 22
    assert {o.domain for o in proto.opset_import} == {""} and {n.domain for n in proto.graph.node} == {""}
    assert proto.opset_import[0].version == 25 and proto.ir_version == 13
    onnx.checker.check_model(proto, full_check=True)


def test_the_file_says_nothing_of_the_machine(resnet):
    content = resnet[1].read_bytes()
    for text in (str(Path(csq.__file__).parents[1]), str(Path.home()), "site-packages", "stack_trace"):
        assert text.encode() not in content
    assert len(getpass.getuser()) < 3 or f"/{getpass.getuser()}/".encode() not in content


def test_the_same_model_gives_the_same_bytes(tmp_path):
    model, x = hardened(csq.models.digits_cnn()), torch.rand(2, 1, 8, 8)
    for name in "ab":
        csq.export_onnx(model, x, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("bits", [3, 8])
def test_activations_become_quantize_and_dequantize(tmp_path, bits):
    torch.manual_seed(0)
    model = csq.models.digits_cnn()
    csq.quantize_activations(model, bits, clip=2.0)
    exact, x = hardened(model, 3.0), torch.rand(8, 1, 8, 8)
    csq.export_onnx(exact, x, tmp_path / "a")
    kinds = [node.op_type for node in onnx.load(tmp_path / "a").graph.node]
    assert kinds.count("QuantizeLinear") == 7 and kinds.count("DequantizeLinear") == 8 + 7
    with torch.no_grad():
        wanted = exact(x)
    assert torch.allclose(wanted, run(tmp_path / "a", x), rtol=1e-3, atol=1e-3)


def test_other_layers_and_no_opset_beyond_need(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.ConvTranspose1d(4, 3, 3), nn.Flatten(), nn.Linear(24, 3))
    exact, x = hardened(model, 3.0), torch.randn(2, 2, 8)
    said = csq.export_onnx(exact, x, tmp_path / "a")
    assert said.opset == 21
    assert torch.allclose(exact(x).detach(), run(tmp_path / "a", x), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_exported_says_why_and_leaves_nothing(tmp_path):
    model = csq.models.digits_cnn()
    with pytest.raises(ValueError, match="no quantized layer"):
        csq.export_onnx(model, torch.rand(2, 1, 8, 8), tmp_path / "a")
    exact = hardened(csq.models.digits_cnn().double())
    with pytest.raises(ValueError, match="not float32"):
        csq.export_onnx(exact, torch.rand(2, 1, 8, 8).double(), tmp_path / "a")
    assert not list(tmp_path.iterdir())


class Outputs(nn.Module):
    """Two layers, whose outputs ``give`` puts together."""

    def __init__(self, give):
        super().__init__()
        self.a, self.b, self.give = nn.Linear(8, 4), nn.Linear(8, 2), give

    def forward(self, x):
        return self.give(x, self.a(x).relu(), self.b(x))


@pytest.mark.parametrize("give, names", [
    # linear and relu are names that torch gives to other values; input and a.weight are taken
    (lambda x, a, b: {"linear": b, "relu": a, "input": x, "a.weight": a, "\x1b\n": a + 1, "": b + 1,
                      "hidden": (b + 2, {"last": b + 3}), "none": None},
     ["linear", "relu", "output.input", "output.a.weight", "\x1b\n", "output", "hidden.0", "hidden.1.last"]),
    (lambda x, a, b: (b, [a, b], x), ["output", "output1.0", "output1.1", "output2"]),
])  # fmt: skip
def test_outputs_keep_their_order_and_names(give, names, tmp_path):
    exact, x = hardened(Outputs(give)), torch.randn(3, 8)
    csq.export_onnx(exact, torch.randn(2, 8), tmp_path / "a")
    assert [output.name for output in onnx.load(tmp_path / "a").graph.output] == names
    found = ort.InferenceSession(str(tmp_path / "a")).run(None, {"input": x.numpy()})
    for one, other in zip(outputs_of(exact(x)).values(), found):
        assert torch.allclose(one, torch.from_numpy(other), atol=1e-5)


class Twice(nn.Linear):
    """A layer under two names, with a state beside its tensors, and a PACT under two names."""

    def __init__(self):
        super().__init__(8, 8)
        self.first = nn.Linear(8, 8)
        self.again, self.relu, self.same = self.first, nn.ReLU(), None

    def forward(self, x):
        return self.same(super().forward(self.again(self.relu(self.first(x)))))

    def get_extra_state(self):
        return {"note": 1}

    def set_extra_state(self, state):
        pass


def test_a_module_under_two_names_is_one(tmp_path):
    model = Twice()
    model.same = model.relu
    csq.quantize_activations(model, 4)
    exact, x = hardened(model), torch.randn(2, 8)
    csq.export_onnx(exact, x, tmp_path / "a")
    assert set(codes_of(tmp_path / "a")) == {"weight", "first.weight"}
    assert torch.allclose(exact(x), run(tmp_path / "a", x), atol=1e-5)


def test_a_model_that_fixes_the_batch_or_leaves_a_layer_out_is_refused(tmp_path):
    fixed, unused = Outputs(lambda x, a, b: a.view(2, 4) + b.sum()), Outputs(lambda x, a, b: a)
    unused.c = nn.Linear(2, 2)
    for model, message in ((fixed, "fixes the batch of input to 2: take"), (unused, "not use b.weight, c.weight")):
        with pytest.raises(ValueError, match=message):
            csq.export_onnx(hardened(model), torch.randn(2, 8), tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("example, message", [
    ([torch.randn(2, 8)], "a tuple of such tensors, got list"), (None, "got None"), ({"x": 1}, "got dict"),
    (torch.randn(2, 8).numpy(), "got ndarray: torch.as_tensor"), (torch.tensor(1.0), "a tensor of no dimension"),
    (torch.randn(1, 8), "at least two examples.*got batches of 1"), ((), "got batches of 0"),
    ((torch.randn(2, 8), torch.randn(3, 8)), "got batches of 2, 3"),
    (torch.randn(2, 7), "cannot export .* mat1 and mat2"), ((torch.randn(2, 8), 1), "got int"),
])  # fmt: skip
def test_an_example_of_another_kind_is_refused(example, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        csq.export_onnx(hardened(nn.Linear(8, 4)), example, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_what_has_diverged_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    csq.quantize_activations(model, 4)
    exact = hardened(model)
    for tensor, message in ((exact[1].alpha, "clip 1.alpha is nan"), (exact[0].bias, "0.bias is not float32, or NaN")):
        value = tensor.data.clone()
        tensor.data.fill_(float("nan"))
        with pytest.raises(ValueError, match=message):
            csq.export_onnx(exact, torch.randn(2, 8), tmp_path / "a")
        tensor.data = value


def test_names_print_as_plain_text():
    layer = ExportedLayer("\x1b[31m<b> \u202e$", 32, 3, 4)
    text = str(Exported(Path("a"), 9, 21, (layer,)))
    assert "\x1b" not in text and r"\x1b[31m<b> \u202e$  " in text
