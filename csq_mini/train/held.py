"""The weights of a trained network, which a search holds while it asks what their planes are worth."""

import copy

from torch import nn

from ..modules import plain_name, unwrap
from ..planes import csq_layers


class Held:
    """A float model's state from before a search; made before the model is converted."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.start = {key: copy.deepcopy(value) for key, value in unwrap(model).state_dict().items()}
        self._still: list[nn.Parameter] = []

    def hold(self) -> None:
        """Train nothing but precisions until :meth:`release`."""
        layers = csq_layers(self.model)
        weights = {plain_name(key): value for key, value in self.start.items()}
        for name, planes in layers.items():
            planes.hold(weights[f"{name}.weight".lstrip(".")])
        precisions = {id(planes.q) for planes in layers.values()}
        self._still = [p for p in self.model.parameters() if p.requires_grad and id(p) not in precisions]
        for parameter in self._still:
            parameter.requires_grad_(False)

    def release(self) -> None:
        """Train what did before."""
        for parameter in self._still:
            parameter.requires_grad_(True)
        self._still = []
