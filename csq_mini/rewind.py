"""Going back to the weights before a search, of which only the scheme is kept (weight rewinding, arXiv 2003.02389)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .check import check_finite
from .modules import plain_name, state_once
from .planes import Planes


class Start:
    """A float state_dict of a model that has been converted since; ValueError if it does not fit, or is not finite."""

    def __init__(self, state: Mapping[str, Any], model: nn.Module, layers: Mapping[str, Planes]):
        given = {plain_name(key): t for key, t in state.items() if isinstance(t, Tensor)}
        self.weights = {name: given.pop(key) for name in layers if (key := _join(name, "weight")) in given}
        ours = tuple(_join(name, "csq.") for name in layers)
        own = {key: t for key, t in state_once(model)[0].items() if not key.startswith(ours)}
        wrong = [_join(name, "weight") for name in layers if _shape(self.weights.get(name)) != layers[name].shape]
        wrong += [key for key in own if _shape(given.get(key)) != own[key].shape]
        if wrong:
            raise ValueError(f"rewind has no {wrong[0]} of the model's shape: give a copy of the float model's "
                             "state_dict, made before csq.convert")  # fmt: skip
        self._others = [(own[key], given[key]) for key in own]
        for key, t in [*self.weights.items(), *((key, given[key]) for key in own)]:
            check_finite(t, f"rewind: {key}: ")

    @torch.no_grad()
    def load_others(self) -> None:
        """Load all but the weights of converted layers: norms, biases, buffers, layers that stay float."""
        for own, given in self._others:
            own.copy_(given)


def _join(name: str, key: str) -> str:
    return f"{name}.{key}".lstrip(".")


def _shape(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.shape
