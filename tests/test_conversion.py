"""convert and harden: what they promise of any model, and what they refuse."""

import functools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import TOKENS, Doubled, Net, conv_net, converted, layers_of, rounded, shake, snapshot, unchanged
from torch import nn
from torch.nn.utils import prune

import csq_mini as csq

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


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
    csq.convert(layer, masks="free")
    csq.set_temperature(layer, beta)
    assert torch.allclose(layer(x), reference(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("beta, part", [(1.0, 0.05), (20.0, 0.002), (200.0, 1e-5)])
def test_the_relaxed_start_of_ordered_masks_is_near_the_function(kind, beta, part):
    layer = LAYERS[kind]()
    x, reference = input_of(layer), rounded(layer)
    csq.convert(layer)
    csq.set_temperature(layer, beta)
    expected = reference(x)
    assert (layer(x) - expected).abs().max() <= part * expected.abs().max()


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
    "name", ["p", "n", "q", "scale", "beta", "mask", "shape", "hard", "frozen", "planes", "open", "csq", "float_class"]
)
@pytest.mark.parametrize("how", ["number", "parameter", "buffer"])
def test_a_users_layer_with_a_name_of_ours_works_or_is_refused_whole(name, how):
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
        assert name in str(error) and "skip" in str(error) and name in ("csq", "float_class")
        assert unchanged(layer, before)
    else:
        assert torch.allclose(layer(x), expected, atol=0.2)
        assert torch.equal(csq.harden(layer)(x), layer(x))


def test_an_embeddings_padding_row_stays_zero_through_training():
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
    with pytest.warns(UserWarning, match="stays float"):
        assert csq.convert(model) == ["0"]
    assert [type(m) for m in model][1:] == kinds[1:] and type(model[0]) is not nn.Linear


def test_skip_takes_patterns_of_whole_dotted_names():
    model = Net()
    assert csq.convert(model, skip=("blocks.*", "embed")) == ["conv.0.0"]
    assert type(model.embed) is nn.Embedding and type(model.again) is Doubled
    assert csq.convert(Net(), skip="again") == ["embed", "blocks.a.0.0", "conv.0.0"]  # either name of a shared layer


# What stays float is named


class Mixed(nn.Module):
    """Weights of many kinds that are no convolution's, linear layer's or embedding's."""

    def __init__(self):
        super().__init__()
        self.head, self.attention = nn.Linear(8, 2), nn.MultiheadAttention(8, 2)
        self.rnn, self.bag, self.bilinear = nn.LSTM(8, 8), nn.EmbeddingBag(8, 8), nn.Bilinear(4, 4, 4)
        self.raw = nn.Parameter(torch.randn(6, 5))
        self.listed = nn.ParameterList([torch.randn(7, 3)])


def pruned(layer):
    return prune.l1_unstructured(layer, "weight", 0.5)


WRAPS = {"weight_norm": nn.utils.parametrizations.weight_norm, "spectral_norm": nn.utils.parametrizations.spectral_norm,
         "orthogonal": nn.utils.parametrizations.orthogonal, "pruned": pruned,
         "old weight_norm": nn.utils.weight_norm, "old spectral_norm": nn.utils.spectral_norm}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weight_norm", "ignore:.*spectral_norm")
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_layer_that_computes_its_weight_is_named_and_can_be_skipped(wrap):
    def build():
        return nn.Sequential(WRAPS[wrap](nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 600))

    model = build()
    with pytest.warns(UserWarning, match=r"stays float: 0\..*Linear \(16 values\).*remove weight norm.*skip"):
        assert csq.convert(model) == ["2"]
    model(torch.randn(3, 4)).sum().backward()
    shown = str(csq.report(csq.harden(model)))
    assert "weights among it: 0." in shown and "4x4 of" in shown
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert csq.convert(build(), skip="0") == ["2"]
    with pytest.raises(ValueError, match=r"nothing to convert: 0\..*remove weight norm"):
        csq.convert(build(), skip="2")


def test_all_other_weights_are_named_with_their_share():
    model = Mixed()
    with pytest.warns(UserWarning) as said:
        assert csq.convert(model) == ["head", "attention.out_proj"]
    (text,) = (str(w.message) for w in said)
    values = sum(p.numel() for p in Mixed().parameters())
    left = 256 + 256 + 192 + 64 + 64 + 30 + 21
    assert "rnn.weight_ih_l0 of LSTM (256 values)" in text and "attention.in_proj_weight of MultiheadAttention" in text
    assert f"and 3 more, {left / values:.1%} of the parameters" in text
    report = csq.report(model)
    assert {part.name for part in report.floats if len(part.shape) > 1} == {
        "raw", "listed.0", "rnn.weight_ih_l0", "rnn.weight_hh_l0", "bag.weight", "bilinear.weight",
        "attention.in_proj_weight"}  # fmt: skip
    assert f"whole model: {values} values, {(16 + 64) / values:.1%} of them quantized" in str(report)


def test_a_few_values_and_what_was_skipped_are_left_in_peace():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        csq.convert(Mixed(), skip=("rnn", "bag", "attention", "bilinear", "listed", ""))
        csq.convert(conv_net(bias=True), skip="11")
        small = nn.Sequential(nn.Linear(100, 20))
        small.register_parameter("raw", nn.Parameter(torch.randn(10, 10)))  # 4.6 % of the model
        csq.convert(small)


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
    for name, planes in layers_of(plain).items():
        scale = weights[f"{name}.weight"].abs().max()
        assert (planes() - weights[f"{name}.weight"]).abs().max() <= scale / 255 / 2 * 1.001


@pytest.mark.parametrize("shape", [(0, 4), (3, 4)])
def test_a_weight_of_zeros_or_of_none_converts_trains_and_hardens(shape):
    layer = nn.Linear(shape[1], shape[0])
    layer.weight.data.zero_()
    csq.convert(layer)
    for beta in (1.0, 200.0, math.inf):
        csq.set_temperature(layer, beta)
        assert layer.weight.shape == shape and not layer.weight.any() and torch.isfinite(layer.weight).all()
    csq.set_temperature(layer, 1.0)
    layer(torch.ones(2, 4)).sum().backward()
    assert torch.isfinite(layer.csq.p.grad).all() and (not shape[0] or layer.csq.p.grad.any())
    assert csq.integers(csq.harden(layer))[""].codes.shape == shape


@pytest.mark.parametrize("training", [True, False])
def test_planes_are_in_the_mode_of_their_layer(training):
    """Else a model in evaluation mode looks as if its batch norm alone were frozen, and is never recalibrated."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train(training)
    csq.convert(model)
    assert all(module.training is training for module in model.modules())
    before = model[1].running_mean.clone()
    csq.recalibrate(model, [torch.ones(8, 3) * torch.arange(8.0).view(-1, 1)])
    assert not torch.equal(before, model[1].running_mean)
