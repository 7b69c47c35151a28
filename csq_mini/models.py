"""Networks, not trained: small CNNs for digits, ResNet-8, ResNet-20 and VGG-19 for CIFAR, ResNets for ImageNet.

Batch norm, which stays float, follows every convolution. Every activation is a module, so that
:func:`csq_mini.quantize_activations` finds it. Source of the ResNets: He et al. (arXiv 1512.03385); of VGG-19:
Simonyan and Zisserman (arXiv 1409.1556), table 1, configuration E.
"""

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .check import unknown, whole


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def _block(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(conv.out_channels), relu=nn.ReLU()))


def _initialise(model: nn.Module) -> None:
    """Draw the weights of every convolution as in He et al. (arXiv 1502.01852, section 2.2)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _named(build: Callable[..., nn.Module]) -> Callable[..., Any]:
    """Record on the model how it was built (``csq_architecture``), so that a packed file can say it."""

    @functools.wraps(build)
    def named(*args: Any, **kwargs: Any) -> nn.Module:
        bound = inspect.signature(build).bind(*args, **kwargs)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            whole(name, value, 1)  # all of them are sizes
        model = build(*args, **kwargs)
        model.csq_architecture = {"name": build.__name__, "arguments": dict(bound.arguments)}  # type: ignore[assignment]
        return model

    return named


@_named
def digits_cnn(num_classes: int = 10) -> nn.Sequential:
    """A depthwise-separable CNN of eight layers: 1 832 weights, 31 % of them in the largest layer.

    Maps images ``[batch, 1, 8, 8]`` to logits ``[batch, num_classes]``. It has small, sensitive layers and large,
    tolerant ones, so a mixed-precision scheme is worth learning.
    """
    layers = {
        "stem": _block(_conv(1, 8)),
        "depth1": _block(_conv(8, 8, groups=8)),
        "point1": _block(_conv(8, 16, size=1)),
        "depth2": _block(_conv(16, 16, stride=2, groups=16)),
        "point2": _block(_conv(16, 24, size=1)),
        "depth3": _block(_conv(24, 24, groups=24)),
        "point3": _block(_conv(24, 24, size=1)),
        "pool": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "fc": nn.Linear(24, num_classes),
    }
    return nn.Sequential(OrderedDict(layers))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: a 1x1 convolution where the shape changes (option B)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()  # two modules: quantized, each learns its own clip

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNetCIFAR(nn.Module):
    """ResNet of depth 6n + 2 for 32x32 images: a stem, three stages of n blocks, a classifier (section 4.2)."""

    def __init__(self, blocks: int, num_classes: int):
        super().__init__()
        self.conv1, self.bn1, self.relu = _conv(3, 16), nn.BatchNorm2d(16), nn.ReLU()
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.fc = nn.Linear(64, num_classes)
        _initialise(self)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.fc(y.mean((2, 3)))


@_named
def mnist_cnn(num_classes: int = 10) -> nn.Sequential:
    """A CNN of 3x3 convolutions: 16 592 weights in 5 layers.

    Maps images ``[batch, 1, 28, 28]`` (or another size) to logits ``[batch, num_classes]``.
    """
    layers = {
        "conv1": _block(_conv(1, 16, stride=2)),
        "conv2": _block(_conv(16, 16)),
        "conv3": _block(_conv(16, 32, stride=2)),
        "conv4": _block(_conv(32, 32)),
        "pool": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "fc": nn.Linear(32, num_classes),
    }
    return nn.Sequential(OrderedDict(layers))


@_named
def resnet8(num_classes: int = 10) -> ResNetCIFAR:
    """ResNet-8 for CIFAR, one block a stage: 77 360 weights in 10 layers.

    Maps images ``[batch, 3, 32, 32]`` (or another size) to logits ``[batch, num_classes]``.
    """
    return ResNetCIFAR(1, num_classes)


@_named
def resnet20(num_classes: int = 10) -> ResNetCIFAR:
    """ResNet-20 for CIFAR, with 1x1 convolutions as shortcuts: 270 896 weights in 22 layers.

    Maps images ``[batch, 3, 32, 32]`` (or another size) to logits ``[batch, num_classes]``.
    """
    return ResNetCIFAR(3, num_classes)


@_named
def vgg19bn(num_classes: int = 10, width: int = 64) -> nn.Sequential:
    """VGG-19 with batch norm for CIFAR: 20 024 000 weights in 17 layers.

    Maps images ``[batch, 3, 32, 32]`` (at least 16 x 16) to logits ``[batch, num_classes]``. The stages have ``width``
    times 1, 2, 4, 8 and 8 channels. One linear layer replaces the original's three, as in the official code of CSQ.
    """
    layers: dict[str, nn.Module] = {}
    inputs = 3
    for stage, (times, convs) in enumerate(((1, 2), (2, 2), (4, 4), (8, 4), (8, 4)), start=1):
        for i in range(1, convs + 1):
            layers[f"conv{stage}_{i}"] = _block(_conv(inputs, times * width))
            inputs = times * width
        layers[f"pool{stage}"] = nn.MaxPool2d(2) if stage < 5 else nn.AdaptiveMaxPool2d(1)
    model = nn.Sequential(OrderedDict(layers, flatten=nn.Flatten(), fc=nn.Linear(inputs, num_classes)))
    _initialise(model)
    return model


@_named
def resnet18(num_classes: int = 1000) -> nn.Module:
    """torchvision's ResNet-18, not trained: 11 678 912 weights in 21 layers.

    Maps images ``[batch, 3, 224, 224]`` (or another size) to logits ``[batch, num_classes]``. Each block uses one
    ``relu`` module throughout, so its quantized activations share one clip. It has not been run on ImageNet.
    """
    import torchvision  # here, so that importing csq_mini needs torch and numpy alone

    return torchvision.models.resnet18(weights=None, num_classes=num_classes)


@_named
def resnet50(num_classes: int = 1000) -> nn.Module:
    """torchvision's ResNet-50, not trained: 25 502 912 weights in 54 layers.

    See :func:`resnet18`. With 8 planes the bit logits take 1.6 GB, and 5 GB with gradients and momentum.
    """
    import torchvision

    return torchvision.models.resnet50(weights=None, num_classes=num_classes)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits_cnn": digits_cnn, "mnist_cnn": mnist_cnn, "resnet8": resnet8, "resnet20": resnet20, "vgg19bn": vgg19bn,
    "resnet18": resnet18, "resnet50": resnet50,
}  # fmt: skip


def get(name: str) -> Callable[..., nn.Module]:
    """The function that builds the network called ``name``, or a ValueError with near names."""
    if name not in [*MODELS]:
        raise ValueError(unknown("model", name, MODELS))
    return MODELS[name]

