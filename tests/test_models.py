import math
import re

import pytest
import torch
from torch import nn

import csq_mini as csq
from csq_mini.activations import activation_bits, quantize_activations

KINDS = (nn.Conv2d, nn.Linear)
WEIGHTS = {"digits_cnn": (1_832, 8), "mnist_cnn": (16_592, 5), "resnet8": (77_360, 10),
           "resnet20": (270_896, 22), "vgg19bn": (20_024_000, 17),
           "resnet18": (11_678_912, 21), "resnet50": (25_502_912, 54)}  # fmt: skip


def quantizable(model):
    return {name: m.weight.numel() for name, m in model.named_modules() if isinstance(m, KINDS)}


def test_digits_cnn_has_layers_to_choose_between():
    sizes = quantizable(csq.models.digits_cnn())
    assert len(sizes) >= 6 and max(sizes.values()) <= 0.35 * sum(sizes.values())
    assert csq.convert(csq.models.digits_cnn()) == list(sizes)


@pytest.mark.parametrize("name", csq.models.MODELS)
def test_the_weights_and_layers_that_a_docstring_counts_are_there(name):
    with torch.device("meta"):
        sizes = quantizable(csq.models.get(name)())
    assert (sum(sizes.values()), len(sizes)) == WEIGHTS[name]
    doc, number = csq.models.get(name).__doc__, f"{WEIGHTS[name][0]:,}".replace(",", " ")
    assert f"{number} weights" in doc and (f"in {len(sizes)} layers" in doc or "eight layers" in doc)


@pytest.mark.parametrize("classes", [2, 10])
def test_networks_map_images_to_logits(classes):
    assert csq.models.digits_cnn(classes)(torch.randn(3, 1, 8, 8)).shape == (3, classes)
    assert csq.models.mnist_cnn(classes)(torch.randn(3, 1, 28, 28)).shape == (3, classes)
    assert csq.models.resnet8(classes)(torch.randn(2, 3, 32, 32)).shape == (2, classes)
    assert csq.models.resnet20(classes)(torch.randn(2, 3, 32, 32)).shape == (2, classes)
    assert csq.models.vgg19bn(classes, width=2)(torch.randn(2, 3, 32, 32)).shape == (2, classes)
    with torch.device("meta"):
        for build in (csq.models.resnet18, csq.models.resnet50):
            assert build(classes)(torch.randn(2, 3, 32, 32)).shape == (2, classes)


def test_resnet20_has_the_size_of_the_paper_and_the_names_of_torchvision():
    model = csq.models.resnet20()
    sizes = quantizable(model)
    assert sum(sizes.values()) == 270_896 and len(sizes) == 22
    names = {name.rpartition(".")[0] for name in model.state_dict()}
    blocks = {f"layer{s}.{b}.{part}" for s in "123" for b in "012" for part in ("conv1", "bn1", "conv2", "bn2")}
    shortcuts = {f"layer{s}.0.downsample.{i}" for s in "23" for i in "01"}
    assert names == {"conv1", "bn1", "fc"} | blocks | shortcuts


def test_resnet20_has_the_names_and_shapes_of_basic_blocks_in_torchvision():
    from torchvision.models.resnet import BasicBlock, ResNet

    class Small(ResNet):
        def __init__(self):
            nn.Module.__init__(self)
            self.inplanes, self.dilation, self.groups, self.base_width, self._norm_layer = 16, 1, 1, 64, nn.BatchNorm2d
            self.layer1, self.layer2 = (
                self._make_layer(BasicBlock, 16, 3),
                self._make_layer(BasicBlock, 32, 3, stride=2),
            )

    ours = {k: v.shape for k, v in csq.models.resnet20().state_dict().items() if re.match("layer[12]", k)}
    assert ours == {k: v.shape for k, v in Small().state_dict().items()}


def test_resnet20_converts_to_hardens_from_and_counts_all_its_weights():
    model = csq.models.resnet20().eval()
    assert csq.convert(model) == list(quantizable(csq.models.resnet20()))
    assert csq.report(model).total.weights == 270_896
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(csq.harden(model)(x), model(x))


def test_resnet20_outputs_are_those_of_relu_functions():
    model, x = csq.models.resnet20().eval(), torch.randn(2, 3, 32, 32)
    y = torch.relu(model.bn1(model.conv1(x)))
    for block in (*model.layer1, *model.layer2, *model.layer3):
        inner = torch.relu(block.bn1(block.conv1(y)))
        y = torch.relu(block.bn2(block.conv2(inner)) + block.downsample(y))
    assert torch.equal(model(x), model.fc(y.mean((2, 3))))


@pytest.mark.parametrize("name, count", [
    ("digits_cnn", 7), ("resnet20", 19), ("vgg19bn", 16), ("resnet18", 9), ("resnet50", 17),
])  # fmt: skip
def test_every_activation_is_a_module_that_can_be_quantized(name, count):
    with torch.device("meta"):
        model = csq.models.get(name)()
    # resnet18 and resnet50 use one module several times a block
    assert len(quantize_activations(model, 4)) == count == len(activation_bits(model))
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())


def test_vgg19bn_is_configuration_e():
    model = csq.models.vgg19bn(width=2)
    plan = [2 * w for w in (1, 1, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8, 8, 8, 8, 8)]
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == plan and all(m.kernel_size == (3, 3) and m.bias is None for m in convs)
    kinds = "".join("P" if "Pool" in type(layer).__name__ else "c" for layer in model[:-2])
    assert kinds == "ccPccPccccPccccPccccP"
    x, sizes = torch.randn(2, 3, 32, 32), []
    for layer in model[:-2]:
        x = layer(x)
        sizes.append(x.shape[-1])
    assert [size for size, kind in zip(sizes, kinds) if kind == "P"] == [16, 8, 4, 2, 1]


def test_the_pools_of_vgg19bn_keep_activations_quantized_up_to_the_classifier():
    model = csq.models.vgg19bn(width=2)
    quantize_activations(model, 3)
    model(torch.randn(4, 3, 32, 32))
    steps = model[:-1](torch.randn(4, 3, 32, 32)).detach() / (torch.tensor(6.0) / 7)
    assert 3 <= len(steps.unique()) <= 8 and torch.equal(steps, steps.round())


@pytest.mark.parametrize("build", [csq.models.resnet20, lambda: csq.models.vgg19bn(width=8)])
def test_convolutions_start_with_the_spread_of_he(build):
    largest = max((m for m in build().modules() if isinstance(m, nn.Conv2d)), key=lambda m: m.weight.numel())
    assert largest.weight.std().item() == pytest.approx((2 / (9 * largest.out_channels)) ** 0.5, rel=0.02)


def test_vgg19bn_converts_trains_and_hardens_exactly():
    model, x = csq.models.vgg19bn(width=4), torch.randn(4, 3, 32, 32)
    names = list(quantizable(model))
    assert csq.convert(model) == names
    budget, y = csq.Budget(model, 3.0), torch.arange(4)
    optimizer = csq.optimizer(model, lr=0.02, steps=100)
    csq.set_temperature(model, 1.0)
    losses = []
    for step in range(5):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        (loss + budget.penalty(step / 100)).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    csq.set_temperature(model.eval(), math.inf)
    assert torch.equal(csq.harden(model)(x), model(x))


def test_resnet18_converts_as_torchvision_builds_it_and_hardens_exactly():
    model, x = csq.models.resnet18().eval(), torch.randn(2, 3, 32, 32)
    names = list(quantizable(model))
    assert csq.convert(model, planes=1) == names and {"conv1", "layer4.0.downsample.0", "fc"} <= set(names)
    assert torch.equal(csq.harden(model)(x), model(x))


def test_the_blocks_of_resnet50_convert_and_harden_exactly():
    model, x = csq.models.resnet50().eval(), torch.randn(2, 3, 32, 32)
    assert len(csq.convert(model.layer1)) == 10  # one stage of four: all of them would take 1.6 GB of logits
    assert torch.equal(csq.harden(model)(x), model(x))


@pytest.mark.parametrize("get, kind, near, right", [
    (csq.models.get, "model", "resnet2", "resnet20"), (csq.data.get, "data set", "digit", "digits"),
    (csq.recipes.get, "recipe", "digts", "digits"),
])  # fmt: skip
def test_unknown_names_suggest_near_ones_or_list_all(get, kind, near, right):
    with pytest.raises(ValueError, match=f"unknown {kind} {near!r}; did you mean .*{right}"):
        get(near)
    with pytest.raises(ValueError, match=f"unknown {kind} 'zzz'; there are: .*digits"):
        get("zzz")


def test_known_names_are_found():
    assert set(csq.models.MODELS) == set(WEIGHTS)
    assert all(csq.models.get(name) is getattr(csq.models, name) for name in WEIGHTS)
    assert csq.data.get("digits") is csq.data.digits
