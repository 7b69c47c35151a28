"""What several test files build on: small networks, small data, and logits as a training leaves them."""

import copy
import multiprocessing

import pytest
import torch
from hypothesis import settings
from torch import nn

import csq_mini as csq
from csq_mini.bits import float_to_planes, planes_to_integer
from csq_mini.planes import Planes

torch.set_num_threads(1)
settings.register_profile("csq", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("csq")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def conv_net(bias=False):
    """Grouped, depthwise and pointwise convolutions with batch norm, and a linear layer, for 8x8 images."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=bias), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4, bias=bias), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 1, groups=2, bias=bias), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10),
    )  # fmt: skip


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 10))


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


def converted(model=None, planes=8, masks="ordered"):
    model = conv_net() if model is None else model
    csq.convert(model, planes, masks=masks)
    return model


def layers_of(model):
    """The planes of a model's converted layers by the layer's name."""
    return {name.rpartition(".")[0]: m for name, m in model.named_modules() if isinstance(m, Planes)}


@torch.no_grad()
def codes_of(planes):
    """The integers of a layer in units of plane 0 with every gate hard, one row of logits after the other."""
    kept = [b for b in range(planes.available) if planes.open[b]] if planes.frozen else range(planes.available)
    codes = torch.zeros(planes.p.shape[1], dtype=torch.int64)
    for b, p, n in zip(kept, planes.p, planes.n):
        codes += 2**b * planes.open[b] * ((p > 0).long() - (n > 0).long())
    return codes


@torch.no_grad()
def set_codes(planes, codes):
    """Give a layer that still searches these integers: logits of +-0.5."""
    for b in range(planes.available):
        for logits, sign in ((planes.p, 1), (planes.n, -1)):
            logits[b] = (((codes.flatten() * sign).clamp(min=0) >> b) & 1) - 0.5


@torch.no_grad()
def shake(model, seed=0, zeros=0.1):
    """Random logits, some exactly zero, random scales and precisions: a converted model somewhere in its training."""
    generator = torch.Generator().manual_seed(seed)
    for planes in layers_of(model).values():
        for logits in (planes.p, planes.n, *([] if planes.frozen else [planes.q])):
            values = torch.randn(logits.shape, generator=generator)
            logits.copy_(values * (torch.rand(logits.shape, generator=generator) > zeros))
        if planes.ordered:
            planes.q.add_(planes.available / 2)
        planes.scale.mul_(0.5 + torch.rand((), generator=generator))
    return model


KINDS = {"Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Linear", "Embedding",
         "Doubled", "NonDynamicallyQuantizableLinear"}  # fmt: skip


def rounded(model, planes=8):
    """A copy that carries the float weights rounded to N planes: the reference of a conversion."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module).__name__ in KINDS and getattr(module, "weight", None) is not None:
            scale, positive, negative = float_to_planes(module.weight.detach(), planes)
            codes = planes_to_integer(positive, negative).view(module.weight.shape)
            module.weight = nn.Parameter(scale.float() / (2**planes - 1) * codes)
    return model


def small(seed=0):
    """A network of two layers and batch norm for images of 4x4."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5))


def hardened(model, target=2.0, planes=8):
    """A float model exactly quantized without a training; a target of None keeps all planes."""
    csq.convert(model, planes)
    if target is not None:
        csq.Budget(model, target).freeze()
    return csq.harden(model).eval()


def levels_of(pact):
    """All values that a PACT may take, lowest first, in float32."""
    top = 2**pact.bits - 1
    return torch.arange(top + 1) * (pact.alpha.detach().float() / top)


def few_digits(train=128, valid=40, test=50, augment=None):
    whole = csq.data.digits()
    parts = ((x[:n].clone(), y[:n].clone()) for (x, y), n in
             zip((whole.train, whole.valid, whole.test), (train, valid, test)))  # fmt: skip
    return csq.data.Data("few digits", *parts, augment)


def same_state(a, b):
    """Whether two state_dicts (or modules) hold the same keys and bit-identical tensors."""
    a, b = (x.state_dict() if isinstance(x, nn.Module) else x for x in (a, b))
    return list(a) == list(b) and all(same_values(a[k], b[k]) for k in a)


def same_values(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def same_history(a, b):
    """Whether two histories are equal in all but the time the epochs took."""
    times = ["seconds", "images_per_second"]
    return a.drop(columns=times).equals(b.drop(columns=times))


def snapshot(model):
    """All that a refused change must leave as it was: values, classes, modes and attributes."""
    values = {k: v.clone() for k, v in model.state_dict().items()}
    shape = {name: (type(m), m.training, sorted(m.__dict__)) for name, m in model.named_modules()}
    return values, shape


def unchanged(model, before):
    values, shape = snapshot(model)
    return same_state(values, before[0]) and shape == before[1]


@pytest.fixture(scope="session")
def processes():
    """Fresh processes that start fast: forked from a clean server that has imported torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "csq_mini", "sklearn.datasets", "sklearn.model_selection", "pandas", "tqdm.auto"]
    )
    return context


@pytest.fixture
def cifar10_root():
    """The data root, if the real CIFAR-10 lies there; the test is skipped if not."""
    root = csq.data.root().absolute()
    if not (root / "cifar-10-batches-py").is_dir():
        pytest.skip(f"no CIFAR-10 in {root}: run python data_scripts/cifar10.py, or set CSQ_DATA to where it is")
    return root
