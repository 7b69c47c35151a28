"""From a float model to bit planes, and from bit planes to an exact model.

:func:`convert` swaps the class of every convolution, linear and embedding layer for one whose ``weight`` is computed
from planes; :func:`harden` gives a plain torch model again.
"""

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .bits import check_planes
from .check import check_layer, floats_in_words, refuse_tied, select, unknown
from .computed import HOW, computed
from .gates import check_temperature
from .modules import copied, named_modules, owner_of, unwrap
from .planes import MASKS, Planes, csq_layers, has_planes
from .scheme import Scheme, harden_planes

CONVERTIBLE = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Linear, nn.Embedding,
)  # fmt: skip
"""Module types (and their subclasses) that :func:`convert` changes."""


class Converted(nn.Module):
    """Mixin that computes ``weight`` from the planes in ``csq``; :func:`convert` puts it before a layer's class.

    A class of its own, and not ``torch.nn.utils.parametrize``, because a converted model can then be pickled whole,
    and still takes a float state_dict.
    """

    csq: Planes
    float_class: type[nn.Module]

    @property
    def weight(self) -> Any:
        """The layer's weight at the present temperature, computed anew at each access, and read-only."""
        fresh = self.__dict__.get("_csq_fresh")  # within reset_parameters
        return computed(self.csq()) if fresh is None else fresh

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise RuntimeError(HOW)
        super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        """Initialise the layer as its float class does, and round the new weight to the planes."""
        planes = self.csq
        self._csq_fresh = torch.empty(planes.shape, dtype=planes.scale.dtype, device=planes.scale.device)
        try:
            super().reset_parameters()  # type: ignore[misc]
            planes.load_float(self._csq_fresh)
        finally:
            del self._csq_fresh

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        weight = state_dict.pop(prefix + "weight", None)
        if weight is not None:
            try:
                self.csq.load_float(weight)
            except ValueError as error:
                args[-1].append(f"{prefix}weight: {error}")
            state_dict.update({f"{prefix}csq.{key}": value for key, value in self.csq.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made on the fly, so pickle and deepcopy get the float class to make it from.
        return _empty_layer, (self.float_class,), self.__getstate__()


_CLASSES: dict[type[nn.Module], type[Converted]] = {}


def converted_class(base: type[nn.Module]) -> type[Converted]:
    """The subclass of a module class whose weight is computed from planes, the same at each call."""
    if base not in _CLASSES:
        _CLASSES[base] = type(f"CSQ{base.__name__}", (Converted, base), {"float_class": base, "__module__": __name__})
    return _CLASSES[base]


def _empty_layer(base: type[nn.Module]) -> Converted:
    cls = converted_class(base)
    return cls.__new__(cls)


def convert(
    model: nn.Module, planes: int = 8, skip: str | Iterable[str] = (), masks: str = "ordered"
) -> list[str]:  # fmt: skip
    """Turn every layer's weight into trainable bit planes, in place.

    Changes each Conv1-3d, ConvTranspose1-3d, Linear and Embedding (subclasses too); the rest stays float. Afterwards
    the temperature is infinity: the model computes with its float weights rounded to N planes. Make optimizers, DDP
    wrappers and EMA copies after this.

    Args:
        model: any module with float weights, trained or not.
        planes: N, 1 to 8 planes a layer; weights are rounded to +-(2^N - 1) steps.
        skip: fnmatch patterns of dotted layer names that stay float, such as ``"layer1.*"``.
        masks: how a layer chooses its planes: "ordered" opens them from the highest down, as many as one trained
            number, its precision, says; "free" trains a mask logit for each, as the paper does.

    Returns:
        Names of the converted layers.

    Warns:
        UserWarning: naming the weights that stay float although no pattern skips their layers, if they are more than a
            twentieth of the model, or belong to a layer that would be converted but for weight norm, pruning or
            another parametrization.

    Raises:
        ValueError: for planes outside 1..8, unknown masks, a pattern that matches no layer, a weight that is tied or
            not finite, a model that is converted already or has nothing to convert. The model is unchanged then.
    """
    planes = check_planes(planes)
    if masks not in MASKS:
        raise ValueError(unknown("masks", masks, MASKS))
    chosen, floats = convertible(model, skip)
    if floats:
        warnings.warn(f"stays float: {floats}", stacklevel=2)
    for module in chosen.values():
        _convert_layer(module, planes, masks)
    return list(chosen)


def convertible(model: nn.Module, skip: str | Iterable[str] = ()) -> tuple[dict[str, nn.Module], str]:
    """The layers that :func:`convert` would change, by name, and in words what it would warn of; raises as it does."""
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        raise ValueError("convert the model before wrapping it in DataParallel or DDP")
    if has_planes(model):
        raise ValueError("the model is converted already: converting twice would quantize planes")
    layers = {k: m for k, m in named_modules(model, remove_duplicate=False) if _own_weight(m) is not None}
    floats = _floats(model, layers)
    named = select("skip", {**{name: owner for name, owner in floats.values()}, **layers}, skip)
    chosen = {name: layer for name, layer in named.items() if name in layers}
    left = {key: owner for key, (name, owner) in floats.items() if name in named}
    words = floats_in_words(unwrap(model), left, CONVERTIBLE)
    if not chosen:
        why = "every layer is skipped" if layers else "no convolution, linear or embedding layer with a weight"
        raise ValueError(f"{type(unwrap(model)).__name__} has nothing to convert: {words or why}")
    refuse_tied(unwrap(model), chosen)
    for name, module in chosen.items():
        check_layer(name, module)
    return chosen, words


def _floats(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, tuple[str, nn.Module]]:
    """Weights (parameters of two dimensions and more) that are in no convertible layer: name -> its owner's, and it."""
    modules, ours = dict(named_modules(model)), {id(layer.weight) for layer in layers.values()}
    own = {k: p for k, p in unwrap(model).named_parameters() if id(p) not in ours and not nn.parameter.is_lazy(p)}
    return {k: (owner_of(k), modules[owner_of(k)]) for k, p in own.items() if p.ndim > 1 and p.is_floating_point()}


def _own_weight(module: nn.Module) -> nn.Parameter | None:
    """The float parameter ``weight`` of a convertible module; None for any other module."""
    weight = module._parameters.get("weight") if isinstance(module, CONVERTIBLE) else None
    return weight if weight is not None and weight.is_floating_point() else None


def _convert_layer(module: Any, planes: int, masks: str) -> None:
    weight = module._parameters.pop("weight")
    module.__dict__.pop("csq", None)  # of an earlier hardening
    module.__class__ = converted_class(type(module))
    module.csq = Planes(weight, planes, masks).train(module.training)


def set_temperature(model: nn.Module, beta: float) -> None:
    """Set the temperature of every converted layer, above zero; ``math.inf`` makes every gate exactly 1[x > 0].

    Works on DDP and compiled wrappers too, which are not compiled anew as it moves. ValueError if it is no temperature,
    or more than a layer's type holds, such as 65504 in float16; nothing changes then.
    """
    beta, layers = check_temperature(beta), csq_layers(model).values()
    narrow = min((planes.beta.dtype for planes in layers), key=lambda dtype: torch.finfo(dtype).max)
    if torch.finfo(narrow).max < beta < math.inf:
        raise ValueError(f"a temperature of {beta:g} is more than {narrow} holds: use at most "
                         f"{torch.finfo(narrow).max:g} or, for the hard gate, math.inf")  # fmt: skip
    for planes in layers:
        planes.set_beta(beta)


def harden(model: nn.Module) -> nn.Module:
    """A new plain torch model with every gate hard: exactly quantized weights, no planes.

    Its outputs equal those of the source at temperature infinity, bit for bit. The source stays as it is, so a model
    can be judged hard in the middle of its training; see :func:`csq_mini.recalibrate` for its batch norm. In the copy
    each converted layer is of its original class again, ``weight`` a parameter, and ``layer.csq`` its
    :class:`~csq_mini.scheme.Scheme`. Wrappers (DDP, AveragedModel, torch.compile) are removed.

    Raises ValueError if the model is not converted, has diverged to NaN or infinity, or holds an average of masks.
    """
    layers = csq_layers(model)
    # deepcopy finds the planes in its memo and leaves them out: they are 16 times the weights.
    memo: dict[int, Any] = {id(planes): None for planes in layers.values()}
    plain = copied(model, memo)
    for name, planes in layers.items():
        _harden_layer(plain.get_submodule(name), harden_planes(planes, name), planes)
    return plain


def _harden_layer(copied: Any, scheme: Scheme, planes: Planes) -> None:
    weight = nn.Parameter(scheme.weight(planes.scale.dtype, planes.scale.device), planes.p.requires_grad)
    del copied._modules["csq"]
    copied.__class__ = copied.float_class
    copied._parameters = {"weight": weight, **copied._parameters}  # first, as it was
    copied.csq = scheme
