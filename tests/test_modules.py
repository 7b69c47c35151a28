"""A model without wrappers, its tensors once each, and copies that take the tensors of a graph."""

import pytest
import torch
from conftest import conv_net
from torch import nn

import csq_mini as csq
from csq_mini.modules import copied, named_modules, owner_of, plain_name, state_once, unwrap


class Keeps(nn.Module):
    """Keeps tensors of its graph, as models with an auxiliary loss or hooks do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.last, self.pyramid = None, []

    def forward(self, x):
        self.last = self.layer(x)
        self.pyramid = [self.last, {"half": (self.last / 2, "text")}]
        return self.last


def test_a_copy_takes_tensors_of_a_graph_and_keeps_who_is_who():
    model = Keeps()
    model(torch.randn(2, 4))
    new = copied(model)
    assert torch.equal(new.last, model.last) and not new.last.requires_grad
    assert new.pyramid[0] is new.last and torch.equal(new.pyramid[1]["half"][0], model.last / 2)
    assert new.layer.weight.requires_grad and new.layer.weight is not model.layer.weight
    assert model.last.requires_grad


@pytest.mark.filterwarnings("ignore:stays float", "ignore:.*weight_norm")
@pytest.mark.parametrize("build", [
    Keeps, lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4)),
])  # fmt: skip
def test_a_model_is_hardened_in_the_middle_of_its_training(build):
    model, x = build(), torch.randn(2, 4)
    csq.convert(model)
    model(x).sum().backward()
    exact = csq.harden(model)
    assert torch.equal(exact(x), model(x))


def test_a_part_that_is_compiled_has_plain_names_and_comes_out_plain():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    plain_names = [name for name, _ in model.named_modules()]
    model[0] = torch.compile(model[0], backend="eager")
    assert [name for name, _ in named_modules(model)] == plain_names
    assert csq.convert(model, skip="1") == ["0.0"]
    assert list(csq.Budget(model, 2.0).freeze()) == ["0.0"]
    exact = csq.harden(model)
    assert list(exact.state_dict()) == ["0.0.weight", "0.0.bias", "1.weight", "1.bias"]
    assert csq.report(model).rows[0].name == "0.0"
    nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2)).load_state_dict(exact.state_dict())


def test_wrappers_come_off_in_any_order():
    model = conv_net()
    wrapped = torch.optim.swa_utils.AveragedModel(nn.DataParallel(model))
    assert type(unwrap(wrapped)) is nn.Sequential and unwrap(torch.compile(model, backend="eager")) is model


class Shared(nn.Module):
    """A module under two names, a parameter under two, a view, and state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = self.a
        self.table = nn.Parameter(torch.randn(3, 3))
        self.same = self.table
        self.register_buffer("view", self.table.detach())
        self.register_buffer("part", self.table.detach()[0])
        self.register_buffer("none", torch.zeros(0))
        self.register_buffer("nothing", torch.zeros(0))

    def get_extra_state(self):
        return {"note": 1}

    def set_extra_state(self, state):
        pass


def test_a_tensor_under_several_names_is_one():
    tensors, others = state_once(Shared())
    assert list(tensors) == ["table", "part", "none", "nothing", "a.weight", "a.bias"]
    assert others == {"same": "table", "view": "table", "b.weight": "a.weight", "b.bias": "a.bias"}


def test_a_shared_module_counts_once_in_a_report():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(16, 16)
            self.b, self.c = self.a, nn.Linear(16, 4)

        def forward(self, x):
            return self.c(self.b(torch.relu(self.a(x))))

    model = Net()
    values = sum(p.numel() for p in model.parameters())
    csq.convert(model)
    for net in (model, csq.harden(model)):
        total = csq.report(net).total
        assert (total.layers, total.weights + total.float_values) == (2, values)
        assert total.original_bytes == 4 * values


@pytest.mark.parametrize("name, plain, owner", [
    ("a._orig_mod.b.weight", "a.b.weight", "a.b"), ("weight", "weight", ""), ("_orig_mod.weight", "weight", ""),
    ("a.parametrizations.weight.original0", "a.parametrizations.weight.original0", "a"),
    ("parametrizations.weight.original", "parametrizations.weight.original", ""),
])  # fmt: skip
def test_names_and_owners(name, plain, owner):
    assert plain_name(name) == plain and owner_of(name) == owner
