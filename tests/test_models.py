import re

import pytest
import torch
from torch import nn

import csq_mini as csq

KINDS = (nn.Conv2d, nn.Linear)


def quantizable(model):
    return {name: m.weight.numel() for name, m in model.named_modules() if isinstance(m, KINDS)}


def test_digits_cnn_has_layers_to_choose_between():
    sizes = quantizable(csq.models.digits_cnn())
    assert len(sizes) >= 6 and max(sizes.values()) <= 0.35 * sum(sizes.values())
    assert csq.convert(csq.models.digits_cnn()) == list(sizes)


def test_digits_cnn_s_docstring_counts_its_weights():
    total = sum(quantizable(csq.models.digits_cnn()).values())
    assert f"{total:,}".replace(",", " ") + " weights" in csq.models.digits_cnn.__doc__


@pytest.mark.parametrize("classes", [2, 10])
def test_networks_map_images_to_logits(classes):
    assert csq.models.digits_cnn(classes)(torch.randn(3, 1, 8, 8)).shape == (3, classes)
    assert csq.models.resnet20(classes)(torch.randn(2, 3, 32, 32)).shape == (2, classes)


def test_resnet20_has_the_paper_s_size_and_torchvision_s_names():
    model = csq.models.resnet20()
    sizes = quantizable(model)
    assert sum(sizes.values()) == 270_896 and len(sizes) == 22
    names = {name.rpartition(".")[0] for name in model.state_dict()}
    blocks = {f"layer{s}.{b}.{part}" for s in "123" for b in "012" for part in ("conv1", "bn1", "conv2", "bn2")}
    shortcuts = {f"layer{s}.0.downsample.{i}" for s in "23" for i in "01"}
    assert names == {"conv1", "bn1", "fc"} | blocks | shortcuts


def test_resnet20_names_and_shapes_are_torchvision_s_basic_blocks():
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
    assert csq.models.get("resnet20") is csq.models.resnet20 and csq.models.get("digits_cnn") is csq.models.digits_cnn
    assert csq.data.get("digits") is csq.data.digits
