"""Quantizers with a given number of planes that train through their rounding: DoReFa-style, and LSQ.

Each is a parametrization (``torch.nn.utils.parametrize``) of a layer's weight: weight = step * codes, where codes are
whole numbers up to 2^planes - 1 in size. The gradient goes *straight through* the rounding, as if it were not there.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...batchnorm import kept_in_eval, set_training
from ...conversion import convertible
from ...modules import copied, named_modules
from ...scheme import Scheme

TINY = 1e-12  # a step of a layer that is all zeros


class Round(torch.autograd.Function):
    """Rounding to whole numbers, halves to even; its gradient is taken as 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class ScaleGradient(torch.autograd.Function):
    """The same value, its gradient multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class Quantizer(nn.Module):
    """A parametrization of a weight as step * codes; a subclass gives the two in :meth:`parts`.

    ``planes`` (0-dim, in the state) is the number of planes, or the most there may be; ``available`` is N.
    """

    planes: Tensor

    def __init__(self, weight: Tensor, planes: int, available: int = 8):
        super().__init__()
        self.available, self.shape = available, weight.shape
        self.register_buffer("planes", torch.tensor(planes, device=weight.device))

    @property
    def top(self) -> Tensor:
        """The largest code, 2^planes - 1, 0-dim."""
        return 2**self.planes - 1

    def parts(self, *originals: Tensor) -> tuple[Tensor, Tensor]:
        """The codes, floats in the weight's shape, and the step, 0-dim, both with a gradient."""
        raise NotImplementedError

    def forward(self, *originals: Tensor) -> Tensor:
        codes, step = self.parts(*originals)
        return codes * step

    def kept(self) -> int:
        """How many planes the layer has at present."""
        return int(self.planes)

    @torch.no_grad()
    def scheme(self, *originals: Tensor) -> Scheme:
        """The exact weight, as the layers of a hardened model have it."""
        codes, step = self.parts(*originals)
        codes, size = (codes * step.sign()).to(torch.int16), float(step.abs())
        kept = tuple(range(self.available - self.kept(), self.available))
        return Scheme(self.available, kept, (), size or 1.0, codes if size else torch.zeros_like(codes))


class DoReFa(Quantizer):
    """Weights rounded after a tanh, in the style of DoReFa-Net (arXiv 1606.06160, equation 9).

    The paper has 2 round((2^k - 1) x) / (2^k - 1) - 1 with x = tanh(w) / (2 max|tanh(W)|) + 1/2, whose levels lie in
    [-1, 1] and leave zero out. Ours are codes = round((2^k - 1) t / max|t|) with t = tanh(W), times the step
    max|t| / (2^k - 1): the same with zero among the levels, and scaled back, so that a trained network keeps its
    function. As in the paper the tanh bounds the weights and nothing else clips them; the maximum is taken as a
    constant, so the gradient is that of tanh alone.
    """

    def parts(self, *originals: Tensor) -> tuple[Tensor, Tensor]:
        t = originals[0].tanh()
        step = t.detach().abs().amax().clamp(min=TINY) / self.top
        return Round.apply(t / step), step


class LSQ(Quantizer):
    """A learned step (LSQ, arXiv 1902.08153, equations 1 to 3 and section 2.2), with -Q_N = Q_P = 2^planes - 1.

    The step starts at 2 mean|W| / sqrt(Q_P), and its gradient is multiplied by 1 / sqrt(|W| Q_P). A weight that is
    clipped gets no gradient.
    """

    def __init__(self, weight: Tensor, planes: int, available: int = 8):
        super().__init__(weight, planes, available)
        most = 2**planes - 1
        self.step = nn.Parameter((2 * weight.detach().abs().mean() / math.sqrt(most)).clamp(min=TINY))
        self.factor = 1 / math.sqrt(weight.numel() * most)

    def parts(self, *originals: Tensor) -> tuple[Tensor, Tensor]:
        step = ScaleGradient.apply(self.step, self.factor)
        return Round.apply((originals[0] / step).clamp(-self.top, self.top)), step


def attach(
    model: nn.Module, make: Callable[[Tensor, int, int], Quantizer], planes: Mapping[str, int], available: int = 8,
    skip: Iterable[str] = (),
) -> None:  # fmt: skip
    """Quantize every layer that :func:`csq_mini.convert` would convert, in place, with so many ``planes`` by name."""
    still = kept_in_eval(model)
    for name, layer in convertible(model, skip)[0].items():
        weight: Any = layer.weight
        layer.__dict__.pop("csq", None)  # of an earlier hardening
        parametrize.register_parametrization(layer, "weight", make(weight, planes[name], available))
    set_training(model, still)  # what is new begins in training mode, and must not make the rest look frozen


def quantized(model: nn.Module) -> dict[str, tuple[nn.Module, Quantizer]]:
    """The layers that :func:`attach` has quantized: name -> (layer, its quantizer)."""
    layers = {k: m for k, m in named_modules(model) if parametrize.is_parametrized(m, "weight")}
    found: dict[str, Any] = {name: layer.parametrizations["weight"][0] for name, layer in layers.items()}  # type: ignore
    return {name: (layers[name], part) for name, part in found.items() if isinstance(part, Quantizer)}


def scheme_of(layer: Any) -> Scheme:
    """The exact weight of a quantized layer."""
    whole = layer.parametrizations["weight"]
    names = ["original"] if whole.is_tensor else [f"original{i}" for i in range(whole.ntensors)]
    return whole[0].scheme(*(getattr(whole, name) for name in names))


def exact(model: nn.Module) -> nn.Module:
    """A new plain model with the weights that the quantizers give, exactly, as :func:`csq_mini.harden` leaves it."""
    plain = copied(model)
    layer: Any
    for layer, _ in quantized(plain).values():
        scheme, weight = scheme_of(layer), layer.weight.detach()
        # Not by remove_parametrizations, which takes ``weight`` from the class: a copy shares that with its source.
        del layer._modules["parametrizations"]
        layer.__class__ = type(layer).__bases__[0]
        own = nn.Parameter(scheme.weight(weight.dtype, weight.device))
        layer._parameters = {"weight": own, **layer._parameters}  # first, as it was
        layer.csq = scheme
    return plain
