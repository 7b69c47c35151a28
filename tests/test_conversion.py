"""convert, set_temperature, harden and integers: what they promise of any model."""

import copy
import functools
import io
import math
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import conv_net, converted, layers_of, same_state, same_values, shake, snapshot, unchanged
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import csq_mini as csq
from csq_mini.bits import float_to_planes, planes_to_integer
from csq_mini.conversion import csq_layers


def rounded(model, planes=8):
    """A copy that carries the float weights rounded to N planes: the reference of a conversion."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module).__name__ in KINDS and getattr(module, "weight", None) is not None:
            scale, positive, negative = float_to_planes(module.weight.detach(), planes)
            codes = planes_to_integer(positive, negative).view(module.weight.shape)
            step = scale.float() / (2**planes - 1)
            module.weight = nn.Parameter(step * codes)
    return model


KINDS = {"Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Linear", "Embedding",
         "Doubled", "NonDynamicallyQuantizableLinear"}  # fmt: skip
CONVOLUTIONS = {
    "plain": {}, "grouped": {"groups": 2}, "depthwise": {"groups": 4}, "dilated": {"dilation": 2},
    "no bias": {"bias": False}, "strided": {"stride": 2},
    **{mode: {"padding_mode": mode} for mode in ("reflect", "replicate", "circular")},
}  # fmt: skip
LAYERS = {
    **{f"conv{d}d {name}": functools.partial(kind, 4, 8, 3, padding=1, **options)
       for d, kind in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)) for name, options in CONVOLUTIONS.items()},
    **{f"transposed {d}d {name}": functools.partial(kind, 4, 8, 3, **options)
       for d, kind in ((1, nn.ConvTranspose1d), (2, nn.ConvTranspose2d), (3, nn.ConvTranspose3d))
       for name, options in CONVOLUTIONS.items() if "padding_mode" not in options},
    "linear": lambda: nn.Linear(5, 7), "linear no bias": lambda: nn.Linear(5, 7, bias=False),
    "embedding": lambda: nn.Embedding(9, 4), "embedding padding": lambda: nn.Embedding(9, 4, padding_idx=2),
}  # fmt: skip


def input_of(layer):
    if isinstance(layer, nn.Embedding):
        return torch.tensor([[0, 2, 8], [2, 1, 3]])
    if isinstance(layer, nn.Linear):
        return torch.randn(3, layer.in_features)
    dims = len(layer.kernel_size)
    return torch.randn(2, layer.in_channels, *[6] * dims)


@pytest.mark.parametrize("planes", [1, 3, 8])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_converted_layer_computes_with_its_rounded_weight(kind, planes):
    layer = LAYERS[kind]()
    x, reference = input_of(layer), rounded(layer, planes)
    assert csq.convert(layer, planes) == [""]
    assert torch.equal(layer(x), reference(x))
    assert torch.equal(csq.harden(layer)(x), reference(x))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("beta", [0.3, 1.0, 20.0, 200.0])
def test_the_relaxed_start_keeps_the_function(kind, beta):
    layer = LAYERS[kind]()
    x, reference = input_of(layer), rounded(layer)
    csq.convert(layer)
    csq.set_temperature(layer, beta)
    assert torch.allclose(layer(x), reference(x), rtol=1e-4, atol=1e-5)


class Doubled(nn.Linear):
    """A user's layer with its own constructor and forward."""

    def __init__(self, size, factor, **options):
        super().__init__(size, size, **options)
        self.factor = factor

    def forward(self, x):
        return self.factor * super().forward(x)


class Net(nn.Module):
    """Deep nesting, containers, a user's subclass and one module under two names."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8, padding_idx=0)
        self.blocks = nn.ModuleDict(
            {"a": nn.ModuleList([nn.Sequential(Doubled(8, 2.0), nn.LayerNorm(8))]), "b": Doubled(8, 0.5)}
        )
        self.again = self.blocks["b"]
        self.conv = nn.Sequential(nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)))
        self.free = nn.Parameter(torch.randn(8))

    def forward(self, tokens):
        x = self.blocks["a"][0](self.embed(tokens)) + self.free
        return self.conv(self.again(self.blocks["b"](x)))


TOKENS = torch.tensor([[1, 0, 5], [10, 3, 3], [0, 7, 2]])


def test_nested_shared_and_subclassed_layers_convert_once_each():
    model = Net()
    reference = rounded(model)
    reference.again = reference.blocks["b"]
    names = csq.convert(model)
    assert names == ["embed", "blocks.a.0.0", "blocks.b", "conv.0.0"]
    assert model.again is model.blocks["b"] and isinstance(model.again, Doubled)
    assert torch.equal(model(TOKENS), reference(TOKENS))
    plain = csq.harden(model)
    assert plain.again is plain.blocks["b"] and type(plain.again) is Doubled
    assert torch.equal(plain.eval()(TOKENS), model.eval()(TOKENS))
    assert csq.Budget(model, 8.0).total == 11 * 8 + 2 * 64 + 12


@pytest.mark.parametrize(
    "name", ["p", "n", "q", "scale", "beta", "mask", "shape", "hard", "frozen", "planes", "open", "csq"]
)
@pytest.mark.parametrize("how", ["number", "parameter", "buffer"])
def test_a_user_s_layer_with_a_name_of_ours_works_or_is_refused_whole(name, how):
    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * getattr(self, name)

    layer, value = Scaled(6, 6), torch.tensor(3.0)
    if how == "number":
        setattr(layer, name, 3.0)
    elif how == "parameter":
        layer.register_parameter(name, nn.Parameter(value))
    else:
        layer.register_buffer(name, value)
    x = torch.randn(4, 6)
    expected = layer(x)
    before = snapshot(layer)
    try:
        csq.convert(layer)
    except ValueError as error:
        assert name in str(error) and "skip" in str(error)
        assert unchanged(layer, before)
    else:
        assert torch.allclose(layer(x), expected, atol=0.2)
        assert torch.equal(csq.harden(layer)(x), layer(x))


def test_the_embedding_s_padding_row_stays_zero_through_training():
    model = nn.Sequential(nn.Embedding(9, 4, padding_idx=2), nn.Flatten(), nn.Linear(8, 3))
    csq.convert(model)
    optimizer = torch.optim.SGD(csq.parameter_groups(model, 0.1, weight_decay=0.01), momentum=0.9)
    for step in range(10):
        csq.set_temperature(model, csq.temperature(step / 10))
        loss = F.cross_entropy(model(torch.tensor([[2, 3], [1, 2]])), torch.tensor([0, 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not model[0].weight[2].any() and model[0].weight[3].any()
    assert not csq.harden(model)[0].weight[2].any()


def test_modules_without_a_weight_to_quantize_are_left_alone():
    model = nn.Sequential(
        nn.Linear(4, 4), nn.LayerNorm(4), nn.PReLU(), nn.GRU(4, 4), nn.BatchNorm1d(4), nn.Dropout(),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    )  # fmt: skip
    kinds = [type(m) for m in model]
    assert csq.convert(model) == ["0"]
    assert [type(m) for m in model][1:] == kinds[1:] and type(model[0]) is not nn.Linear


def test_skip_takes_patterns_of_whole_dotted_names():
    model = Net()
    assert csq.convert(model, skip=("blocks.*", "embed")) == ["conv.0.0"]
    assert type(model.embed) is nn.Embedding and type(model.again) is Doubled
    assert csq.convert(Net(), skip="again") == ["embed", "blocks.a.0.0", "conv.0.0"]  # either name of a shared layer


# Refusals: each leaves the model as it was


def tied():
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    model[1].weight = model[0].weight
    return model


def with_value(value):
    model = conv_net()
    model[6].weight.data[1, 0, 0, 0] = value
    return model


def maxed():
    return nn.Sequential(nn.Linear(2, 2), nn.Embedding(4, 2, max_norm=1.0))


REFUSED = {
    "planes 0": (conv_net, {"planes": 0}, "1 to 8, got 0"),
    "planes 9": (conv_net, {"planes": 9}, "1 to 8, got 9"),
    "planes True": (conv_net, {"planes": True}, "1 to 8, got True"),
    "planes 2.0": (conv_net, {"planes": 2.0}, "1 to 8, got 2.0"),
    "planes text": (conv_net, {"planes": "8"}, "1 to 8, got '8'"),
    "nan": (lambda: with_value(math.nan), {}, "6.weight: 1 of 12 weights are NaN.*checkpoint"),
    "infinity": (lambda: with_value(-math.inf), {}, "6.weight: 1 of 12.*infinite"),
    "empty": (nn.Sequential, {}, "Sequential has nothing to convert.*no convolution, linear or embedding"),
    "no weights": (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), {}, "nothing to convert"),
    "all skipped": (conv_net, {"skip": "*"}, "nothing to convert.*skipped"),
    "skip misses": (
        conv_net,
        {"skip": ("0", "layer")},
        "'layer' matches no layer.*near names: 0, 3, 6.*whole dotted names",
    ),
    "skip near": (Net, {"skip": ("block.b",)}, r"'block.b'.*near names: .*blocks.b"),
    "tied": (tied, {}, "0.weight and 1.weight.*tied.*clone.*skip"),
    "lazy": (lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)), {}, "1.weight has no values.*batch"),
    "meta": (lambda: nn.Linear(2, 2, device="meta"), {}, "no values"),
    "max_norm": (maxed, {}, "1 uses max_norm.*max_norm = None.*skip"),
    "sparse": (lambda: nn.Embedding(4, 2, sparse=True), {}, "sparse"),
    "DataParallel": (lambda: nn.DataParallel(conv_net()), {}, "before wrapping"),
    "again": (converted, {}, "converted already"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_conversion_says_why_and_changes_nothing(case):
    build, options, message = REFUSED[case]
    model = build()
    lazy = case in ("lazy", "meta")
    before = [type(m) for m in model.modules()] if lazy else snapshot(model)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        csq.convert(model, **options)
    assert [type(m) for m in model.modules()] == before if lazy else unchanged(model, before)


def test_a_module_holding_a_converted_one_is_converted_already():
    inner = converted(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="converted already"):
        csq.convert(nn.Sequential(nn.Linear(3, 3), inner))


def test_untied_copies_and_skipped_ties_convert():
    model = tied()
    model[1].weight = nn.Parameter(model[1].weight.detach().clone())
    assert csq.convert(model) == ["0", "1"]
    with pytest.raises(ValueError, match="nothing to convert"):
        csq.convert(tied(), skip=("0", "1"))


@pytest.mark.parametrize(
    "call", [csq.harden, csq.integers, csq.report, lambda m: csq.Budget(m, 2.0), lambda m: csq.set_temperature(m, 1.0)]
)
def test_what_needs_a_converted_model_says_so(call):
    with pytest.raises(ValueError, match=r"Sequential has no (converted|quantized) layer.*csq\.convert\(model\)"):
        call(conv_net())


def test_a_hardened_model_cannot_be_hardened_again_but_converted():
    plain = csq.harden(shake(converted()))
    with pytest.raises(ValueError, match="no converted layer"):
        csq.harden(plain)
    weights = {name: p.clone() for name, p in plain.named_parameters()}
    csq.convert(plain)
    for name, layer in layers_of(plain).items():
        scale = weights[f"{name}.weight"].abs().max()
        assert (layer.weight - weights[f"{name}.weight"]).abs().max() <= scale / 255 / 2 * 1.001


@pytest.mark.parametrize("shape", [(0, 4), (3, 4)])
def test_a_weight_of_zeros_or_of_none_converts_trains_and_hardens(shape):
    layer = nn.Linear(shape[1], shape[0])
    nn.init.zeros_(layer.weight) if shape[0] else None
    csq.convert(layer)
    for beta in (1.0, 200.0, math.inf):
        csq.set_temperature(layer, beta)
        assert layer.weight.shape == shape and not layer.weight.any() and torch.isfinite(layer.weight).all()
    csq.set_temperature(layer, 1.0)
    layer(torch.ones(2, 4)).sum().backward()
    assert torch.isfinite(layer.p.grad).all() and (not shape[0] or layer.p.grad.any())
    assert csq.integers(csq.harden(layer))[""].codes.shape == shape


# The three hard views agree


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("frozen", [False, True])
def test_infinity_harden_and_integers_agree(seed, frozen, dtype):
    model = shake(converted(conv_net(bias=True)), seed, zeros=0.3)
    if frozen:
        csq.Budget(model, 2.7).freeze()
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


@given(st.integers(0, 999), st.integers(1, 8), st.floats(-42, 36))
def test_codes_count_in_the_lowest_kept_plane_for_any_scale(seed, planes, exponent):
    layer = shake(converted(nn.Linear(5, 3), planes), seed, zeros=0.4)
    layer.scale.data.fill_(1.7 * 10**exponent)
    [ints] = csq.integers(layer).values()
    kept = layer.q > 0
    low = int(kept.nonzero()[0]) if kept.any() else 0
    value = sum(2 ** (b - low) * ((layer.p[b] > 0).long() - (layer.n[b] > 0).long()) for b in range(planes) if kept[b])
    assert torch.equal(ints.codes.long().flatten(), value if kept.any() else torch.zeros(15, dtype=torch.long))
    assert ints.planes == tuple(kept.nonzero().flatten().tolist())
    assert ints.step == float(layer.scale.detach() / (2**planes - 1)) * 2**low
    assert torch.equal(ints.codes.float() * ints.step, csq.harden(layer).weight)
    assert torch.equal(csq.integers(csq.harden(layer))[""].codes, ints.codes)


def test_a_scale_that_training_turned_negative_gives_a_positive_step():
    model = shake(converted(nn.Linear(6, 5)))
    model.scale.data.mul_(-1)
    csq.set_temperature(model, math.inf)
    for which in (model, csq.harden(model)):
        [ints] = csq.integers(which).values()
        assert torch.equal(ints.codes.float() * ints.step, model.weight)
        assert ints.step > 0


@pytest.mark.parametrize("scale", [0.0, -0.0])
def test_a_scale_of_zero_hardens_to_zeros(scale):
    model = shake(converted(nn.Linear(6, 5)))
    model.scale.data.fill_(scale)
    plain = csq.harden(model)
    [ints] = csq.integers(plain).values()
    assert not plain.weight.any() and torch.equal(ints.codes.float() * ints.step, plain.weight.abs())


def test_integers_notice_a_weight_changed_after_hardening():
    plain = csq.harden(shake(converted()))
    plain[0].weight.data[0, 0, 0, 0] += 0.01
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
    assert same_state(pickle.loads(pickle.dumps(plain)), plain)


def test_hardening_takes_no_memory_of_planes_and_leaves_the_source_alone():
    model = shake(converted())
    csq.set_temperature(model, 2.0)
    model.train()
    before = snapshot(model)
    plain = csq.harden(model)
    assert unchanged(model, before)
    own = {t.data_ptr() for t in model.state_dict().values() if t.numel()}
    assert not own & {t.data_ptr() for t in plain.state_dict().values() if t.numel()}


def train(model, steps, watch=False, start=0):
    """A few steps of the search; ``watch`` judges the model hard before each of them."""
    budget = csq.Budget(model, 3.0)
    optimizer = torch.optim.SGD(csq.parameter_groups(model, 0.05, weight_decay=1e-3), momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for step in range(start, start + steps):
        csq.set_temperature(model, csq.temperature(step / 20))
        x, y = torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator)
        if watch:
            csq.recalibrate(csq.harden(model), [x]).eval()(x)
            csq.integers(model), csq.report(model), budget.bits()
        loss = F.cross_entropy(model(x), y) + budget.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_judging_hard_in_mid_training_leaves_it_bit_identical():
    plain, watched = converted(), None
    watched = copy.deepcopy(plain)
    torch.manual_seed(5)
    train(plain, 5)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    train(watched, 5, watch=True)
    assert same_state(plain, watched) and torch.equal(torch.get_rng_state(), state)


# state_dicts, copies and files


def somewhere(kind):
    """A converted model at some point of its life."""
    model = shake(converted(Net()))
    if kind == "frozen":
        csq.Budget(model, 2.5).freeze()
    csq.set_temperature(model, math.inf if kind == "hard" else 4.25)
    return model.eval()


def through_file(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


def through_state(model):
    fresh = converted(Net())
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": through_file,
          "state_dict": through_state}  # fmt: skip


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", ["search", "frozen", "hard"])
def test_a_copy_is_the_model_with_masks_and_temperature(kind, way):
    model = somewhere(kind)
    twin = COPIES[way](model)
    assert same_state(twin, model) and torch.equal(twin(TOKENS), model(TOKENS))
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    assert twin.again is twin.blocks["b"]
    assert csq.Budget(twin, 4.0).frozen == (kind == "frozen")
    with torch.no_grad():
        twin.embed.p.neg_()
    assert not torch.equal(twin(TOKENS), model(TOKENS))  # it shares no memory


def test_a_saved_model_opens_in_a_fresh_process(tmp_path):
    model = shake(converted(conv_net(bias=True))).eval()
    csq.Budget(model, 3.0).freeze()
    csq.set_temperature(model, 7.5)
    x = torch.randn(2, 1, 8, 8)
    torch.save({"model": model, "hard": csq.harden(model), "x": x, "y": model(x).detach()}, tmp_path / "all.pt")
    code = (
        "import sys, torch; torch.set_num_threads(1); a = torch.load(sys.argv[1], weights_only=False)\n"
        "assert torch.equal(a['model'](a['x']), a['y'])\n"
        "import csq_mini as csq; assert torch.equal(csq.harden(a['model'])(a['x']), a['hard'](a['x']))\n"
        "csq.integers(a['hard']); print(csq.report(a['model']).total.paper_bits)"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "all.pt"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == csq.report(model).total.paper_bits


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("beta", [1.0, math.inf])
def test_a_float_state_dict_loads_strictly_into_a_converted_model(beta, assign):
    source, model = Net(), shake(converted(Net()))
    csq.set_temperature(model, beta)
    state = source.state_dict()
    keys = list(state)
    assert model.load_state_dict(state, assign=assign) == ([], [])
    assert list(state) == keys
    reference = rounded(source)
    reference.again = reference.blocks["b"]
    assert float(model.embed.beta) == beta
    csq.set_temperature(model, math.inf)
    assert torch.equal(model.eval()(TOKENS), reference.eval()(TOKENS))


def test_a_float_state_dict_goes_onto_the_planes_a_frozen_layer_keeps():
    model = shake(converted(nn.Linear(20, 10)))
    csq.Budget(model, 3.0).freeze()
    before, source = model.open.clone(), nn.Linear(20, 10)
    model.load_state_dict(source.state_dict())
    assert torch.equal(model.open, before) and csq.Budget(model, 3.0).frozen
    scale = source.weight.abs().max()
    assert (model.weight - source.weight).abs().max() <= scale / 7 / 2 * 1.001  # 3 planes: 7 steps a side


@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "extra"])
def test_a_float_state_dict_that_does_not_fit_is_refused(damage):
    model = converted(nn.Sequential(nn.Linear(4, 3)))
    state = {"0.weight": torch.randn(3, 4), "0.bias": torch.randn(3)}
    if damage == "missing":
        del state["0.weight"]
    elif damage == "extra":
        state["1.weight"] = torch.zeros(1)
    else:
        state["0.weight"] = torch.randn(4, 4) if damage == "shape" else torch.full((3, 4), math.nan)
    planes = {k: v.clone() for k, v in model.state_dict().items() if k != "0.bias"}
    with pytest.raises(
        RuntimeError, match={"missing": r"0\.p", "shape": r"\(4, 4\)", "nan": "NaN", "extra": "1.weight"}[damage]
    ):
        model.load_state_dict(state)
    if damage != "extra":  # torch itself loads what fits before it complains of what does not
        assert all(torch.equal(model.state_dict()[k], v) for k, v in planes.items())


# Formats, types and wrappers


def test_channels_last_keeps_the_outputs():
    model = shake(converted(conv_net(bias=True))).eval()
    csq.set_temperature(model, 5.0)
    x = torch.randn(2, 1, 8, 8)
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    assert torch.allclose(model(x.to(memory_format=torch.channels_last)), expected, atol=1e-5)
    plain = csq.harden(model)
    csq.set_temperature(model, math.inf)
    assert torch.equal(plain(x), model(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_changes_its_type_and_back_without_changing_its_integers(dtype):
    model = converted(nn.Linear(16, 8))
    before = csq.integers(model)[""].codes
    model.to(dtype)
    assert model.weight.dtype == dtype and model(torch.randn(2, 16, dtype=dtype)).dtype == dtype
    assert torch.equal(csq.integers(model)[""].codes, before)
    assert csq.harden(model).weight.dtype == dtype
    csq.set_temperature(model, 1.0)
    assert torch.allclose(model.weight.double(), csq.harden(model).weight.double(), rtol=2e-2, atol=1e-2)
    model.to(torch.float32)
    assert model.mask.dtype == torch.int8
    assert torch.equal(csq.integers(model)[""].codes, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_type_converts_within_half_a_step(dtype):
    layer = nn.Linear(50, 40).to(dtype)
    weight = layer.weight.detach().double()
    csq.convert(layer)
    exact = csq.integers(layer)[""]
    step = weight.abs().max() / 255
    assert (exact.codes.double() * exact.step - weight).abs().max() <= step / 2 * 1.001
    layer(torch.randn(3, 50, dtype=dtype)).sum().backward()
    assert layer.p.grad is not None and layer.p.grad.dtype == dtype


@pytest.mark.parametrize("beta", [1.0, 30.0, math.inf])
@pytest.mark.parametrize("frozen", [False, True])
def test_weights_and_their_gradients_are_exact_under_autocast(beta, frozen):
    layer = shake(converted(nn.Conv2d(6, 8, 3)))
    if frozen:
        csq.Budget(layer, 3.0).freeze()
    csq.set_temperature(layer, beta)
    upstream = torch.randn(layer.shape)
    parameters = (layer.p, layer.n, layer.q, layer.scale)
    expected = layer.weight, *torch.autograd.grad(layer.weight, parameters, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        weight = layer.weight
        assert layer(torch.randn(1, 6, 5, 5)).dtype == torch.bfloat16  # so that autocast is at work
        inside = torch.autograd.grad(weight, parameters, upstream)
    assert weight.dtype == torch.float32
    assert all(same_values(a, b) for a, b in zip((weight, *inside), expected))


def test_training_under_autocast_learns():
    model = converted(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
    x, y = torch.randn(64, 8), torch.arange(64) % 4
    optimizer = torch.optim.SGD(csq.parameter_groups(model, 0.1), momentum=0.9)
    csq.set_temperature(model, 1.0)
    losses = []
    for _ in range(60):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_compiles_whole_and_once_for_every_finite_temperature():
    model = converted(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4)))
    twin = copy.deepcopy(shake(model))
    fast = torch.compile(model, fullgraph=True)
    x = torch.randn(5, 1, 8, 8)
    for i, beta in enumerate((1.0, 1.7, 33.0, 200.0)):
        csq.set_temperature(fast, beta)
        csq.set_temperature(twin, beta)
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            out = fast(x)
        for net, y in ((model, out), (twin, twin(x))):
            net.zero_grad()
            y.square().sum().backward()
        assert torch.allclose(out, twin(x), rtol=1e-4, atol=1e-4)
        assert all(torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-3 * float(b.grad.abs().max()))
                   for a, b in zip(model.parameters(), twin.parameters()))  # fmt: skip
    plain = csq.harden(fast)
    assert type(plain) is nn.Sequential and len(csq_layers(fast)) == 2
    assert csq.Budget(fast, 4.0).bits() == csq.Budget(twin, 4.0).bits()


@pytest.mark.parametrize("beta", [2.0, math.inf])
def test_exports_to_a_graph_with_the_same_outputs(beta):
    model = shake(converted(conv_net(bias=True))).eval()
    csq.set_temperature(model, beta)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        assert torch.allclose(program.module()(x), model(x), atol=1e-6)
    hard = torch.export.export(csq.harden(model), (x,))
    assert torch.equal(hard.module()(x), csq.harden(model)(x))


def ddp_worker(rank, world, file, out):
    """One rank of a data-parallel search, freeze and finetune; or the whole of it for world 1."""
    import os

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.manual_seed(0)
    model = converted(nn.Sequential(nn.Conv2d(1, 3, 3), nn.GELU(), nn.Flatten(), nn.Linear(108, 4)))
    wrapped = model
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
        wrapped = nn.parallel.DistributedDataParallel(model)
    budget = csq.Budget(wrapped, 3.0, strength=4.0)
    generator = torch.Generator().manual_seed(3)
    for phase in ("search", "finetune"):
        if phase == "finetune":
            budget.freeze()
        optimizer = torch.optim.SGD(csq.parameter_groups(wrapped, 0.05), momentum=0.9)
        for step in range(4):
            csq.set_temperature(wrapped, csq.temperature(step / 4))
            x, y = torch.randn(8, 1, 8, 8, generator=generator), torch.randint(4, (8,), generator=generator)
            part = slice(rank * 8 // world, (rank + 1) * 8 // world)
            loss = F.cross_entropy(wrapped(x[part]), y[part]) + budget.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    plain = csq.harden(wrapped)
    state = {
        "state": model.state_dict(),
        "bits": budget.bits(),
        "plain": plain.state_dict(),
        "kind": type(plain).__name__,
    }
    torch.save(state, f"{out}{world}{rank}")
    if world > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_data_parallel_processes_go_through_all_phases_like_one(tmp_path, processes):
    ranks = [processes.Process(target=ddp_worker, args=(r, 2, tmp_path / "meet", tmp_path / "out")) for r in range(2)]
    for process in ranks:
        process.start()
    ddp_worker(0, 1, None, tmp_path / "out")
    for process in ranks:
        process.join(90)
    assert [process.exitcode for process in ranks] == [0, 0]
    first, second, alone = (torch.load(tmp_path / f"out{k}") for k in ("20", "21", "10"))
    assert same_state(first["state"], second["state"]) and same_state(first["plain"], second["plain"])
    assert first["bits"] == alone["bits"] <= 3.0 and first["kind"] == "Sequential"
    for key, value in alone["state"].items():
        assert torch.allclose(first["state"][key], value, rtol=1e-3, atol=1e-3), key
