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
from csq_mini.onnx_export import codes_of  # noqa: E402


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
    assert {layer.onnx_bits for layer in said.layers} == {2, 4, 8, 16}
    assert said.file_bytes == path.stat().st_size and "INT2" in str(said)


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
