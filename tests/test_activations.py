"""quantize_activations: which modules change, what is refused, and the activations of a model through all it does."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from conftest import conv_net, converted, levels_of, same_state, shake, snapshot, unchanged
from torch import nn

import csq_mini as csq
from csq_mini.activations import PACT, activation_bits, quantize_activations


def quantized(model=None, bits=3, clip=2.0):
    model = conv_net() if model is None else model
    quantize_activations(model, bits, clip)
    return model


def pacts(model):
    return [m for m in model.modules() if isinstance(m, PACT)]


# A model's activations


class Net(nn.Module):
    """Nested, shared and other activations, and one that is a subclass."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(5, 5), nn.ReLU6(inplace=True)) for _ in range(2)])
        self.relu = nn.ReLU(inplace=True)
        self.again = self.relu
        self.own = type("Own", (nn.ReLU,), {})()
        self.gelu = nn.GELU()

    def forward(self, x):
        for block in self.blocks:
            x = self.relu(block(x) - 0.1)
        return self.gelu(self.own(self.again(x)))


def test_every_relu_module_becomes_one_pact():
    model = Net().eval()
    assert quantize_activations(model, 4, clip=3) == ["blocks.0.1", "blocks.1.1", "relu"]
    assert activation_bits(model) == {"blocks.0.1": 4, "blocks.1.1": 4, "relu": 4}
    assert model.again is model.relu and type(model.own).__name__ == "Own" and not model.relu.training
    assert [p.alpha.item() for p in pacts(model)] == [3, 3, 3] and len({id(p.alpha) for p in pacts(model)}) == 3
    x = torch.randn(6, 5)
    y, levels = x, levels_of(model.relu)
    for block in model.blocks:
        y = block[0](y)
        y = levels[(y.clamp(0, 3) / levels[1]).round().long()] - 0.1
        y = levels[(y.clamp(0, 3) / levels[1]).round().long()]
    assert torch.equal(model(x), F.gelu(y))
    assert repr(model.relu) == "PACT(bits=4)" and "inplace" not in vars(model.relu)


def test_eight_bits_of_a_wide_clip_are_nearly_a_relu():
    model, x = conv_net().eval(), torch.randn(4, 1, 8, 8)
    expected = model(x)
    quantized(model, 8, clip=6.0)
    assert 0 < (model(x) - expected).abs().max() < 0.05


def test_hooks_types_and_the_models_own_references_stay():
    model, seen = conv_net().double(), []
    held = model[2]
    held.register_forward_hook(lambda *args: seen.append(1))
    quantized(model)(torch.randn(2, 1, 8, 8, dtype=torch.float64))
    assert model[2] is held and seen == [1] and held.alpha.dtype == torch.float64
    assert quantized(conv_net().to("meta"))[2].alpha.is_meta
    bare = nn.ReLU()
    assert quantize_activations(bare, 2) == [""] and isinstance(bare, PACT)


@pytest.mark.parametrize("skip, left", [("2", ["5", "8"]), (["2", "8"], ["5"]), ("[!2]", ["2"]), ("again", None)])
def test_skipped_activations_stay(skip, left):
    model = Net() if left is None else conv_net()
    names = quantize_activations(model, 4, skip=skip)
    assert names == (left or ["blocks.0.1", "blocks.1.1"]) == list(activation_bits(model))


REFUSED = {
    "bits": (conv_net, {"bits": 0}, "got 0"),
    "clip": (conv_net, {"bits": 4, "clip": 0.0}, "got 0.0"),
    "pattern": (conv_net, {"bits": 4, "skip": ["2", "22"]}, "activation pattern '22' matches no layer; near names: 2"),
    "all skipped": (conv_net, {"bits": 4, "skip": "*"}, r"nothing to quantize: skip='\*' leaves no"),
    "functions": (lambda: nn.Linear(2, 2), {"bits": 4}, r"Linear has no nn.ReLU .* self.relu = nn.ReLU\(\)"),
    "twice": (quantized, {"bits": 4}, "quantized already"),
    "parallel": (lambda: nn.DataParallel(conv_net()), {"bits": 4}, "before wrapping"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_the_model_as_it_was(case):
    build, arguments, message = REFUSED[case]
    model = build()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        quantize_activations(model, **arguments)
    assert unchanged(model, before)


def test_names_are_those_without_wrappers_and_a_float_model_has_none():
    model, expected = quantized(), {"2": 3, "5": 3, "8": 3}
    assert quantize_activations(torch.compile(conv_net()), 3) == list(expected)
    assert activation_bits(torch.compile(model)) == activation_bits(nn.DataParallel(model)) == expected
    assert activation_bits(csq.harden(converted(model))) == expected
    assert activation_bits(conv_net()) == {}


# Together with quantized weights


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("first", ["weights", "activations"])
def test_a_hardened_model_keeps_its_activations_and_equals_temperature_infinity(first, bits, frozen):
    model = conv_net()
    for step in (csq.convert, lambda m: quantize_activations(m, bits))[:: 1 if first == "weights" else -1]:
        step(model)
    shake(model).eval()
    if frozen:
        csq.Budget(model, 3.0).freeze()
    for i, pact in enumerate(pacts(model)):
        pact.alpha.data.fill_(0.5 + i)
    x = torch.randn(6, 1, 8, 8)
    plain = csq.harden(model)
    assert torch.equal(plain(x), model(x))
    assert [type(m) for m in plain.modules() if type(m) is PACT] == [PACT] * 3
    assert all(a.alpha is not b.alpha and a.alpha == b.alpha for a, b in zip(pacts(plain), pacts(model)))
    assert len(plain[2](torch.randn(1000)).unique()) == 2**bits


def test_clips_are_a_parameter_group_of_their_own_that_decays():
    model = converted(quantized())
    groups = {g["name"]: g for g in csq.parameter_groups(model, 0.1, weight_decay=0.01)}
    clips = groups["activation clips"]
    assert {id(p) for p in clips["params"]} == {id(m.alpha) for m in pacts(model)}
    assert clips["lr"] == 0.1 and clips["weight_decay"] == 0.01
    assert groups["norms and biases"]["weight_decay"] == groups["bit logits"]["weight_decay"] == 0
    optimizer = torch.optim.SGD(groups.values())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(m.alpha.item() == pytest.approx(2.0 * (1 - 0.1 * 0.01)) for m in pacts(model))


@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_of_few_bits_learns_and_so_does_every_clip(autocast):
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    converted(quantized(model, bits=3))
    x, y = torch.randn(64, 8), torch.arange(64) % 4
    optimizer = torch.optim.SGD(csq.parameter_groups(model, 0.1), momentum=0.9)
    csq.set_temperature(model, 1.0)
    losses = []
    for _ in range(100):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(m.alpha.dtype == m.alpha.grad.dtype == torch.float32 and m.alpha != 2 for m in pacts(model))


# Copies, formats and wrappers


def through_state(model):
    fresh = quantized()
    fresh.load_state_dict(model.state_dict())
    return fresh


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_state])
def test_a_copy_is_the_model_with_its_clips(way):
    model = quantized().eval()
    model[5].alpha.data.fill_(0.3)
    twin, x = way(model).eval(), torch.randn(3, 1, 8, 8)
    assert same_state(twin, model) and torch.equal(twin(x), model(x))
    assert activation_bits(twin) == {"2": 3, "5": 3, "8": 3}
    twin[5].alpha.data.fill_(3.0)
    assert model[5].alpha == torch.tensor(0.3)


def test_a_state_dict_names_its_clips_and_loads_strictly():
    state = quantized().state_dict()
    assert set(state) - set(conv_net().state_dict()) == {"2.alpha", "5.alpha", "8.alpha"}
    with pytest.raises(RuntimeError, match="2.alpha"):
        quantized().load_state_dict(conv_net().state_dict())


def test_compiles_whole_and_once_for_every_clip():
    model = quantized(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU6()), bits=4)
    twin = copy.deepcopy(model)
    fast, x = torch.compile(model, fullgraph=True, backend="aot_eager"), torch.randn(7, 6)
    for i, alpha in enumerate((2.0, 0.4, -1.0)):
        for net in (model, twin):
            net.zero_grad()
            net[1].alpha.data.fill_(alpha)
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            outputs = fast(x), twin(x)
        for out in outputs:
            out.square().sum().backward()
        assert torch.allclose(*outputs)
        assert all(torch.allclose(a.grad, b.grad) for a, b in zip(model.parameters(), twin.parameters()))


def test_exports_to_a_graph_with_the_same_outputs():
    model, x = csq.harden(converted(quantized().eval())), torch.randn(3, 1, 8, 8)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_data_parallel_training_finds_every_clip_used(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = converted(quantized(Net()))
        wrapped = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):  # the second forward complains of parameters that the first backward left out
            wrapped(torch.randn(4, 5)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(m.alpha.grad is not None for m in pacts(model))
