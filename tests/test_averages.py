"""Copies that others make of a model's tensors, never of its attributes: averages (EMA, SWA), empty copies, loops."""

import copy
import math

import pytest
import torch
from conftest import TOKENS, Net, conv_net, converted, shake
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import csq_mini as csq
from csq_mini.planes import csq_layers

X = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Averaged:
    """torch's AveragedModel; with buffers it is what Lightning's callback makes."""

    def __init__(self, model, decay, use_buffers):
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=use_buffers)

    def update(self, model):
        self.average.update_parameters(model)

    @property
    def model(self):
        return self.average.module


class OverState:
    """A loop over the values of two state_dicts, as timm's ModelEmaV2 and V3 have it."""

    def __init__(self, model, decay, lerp):
        self.model, self.decay, self.lerp = copy.deepcopy(model).eval(), decay, lerp

    @torch.no_grad()
    def update(self, model):
        for ours, theirs in zip(self.model.state_dict().values(), model.state_dict().values()):
            if not self.lerp:
                ours.copy_(self.decay * ours + (1 - self.decay) * theirs)
            elif ours.is_floating_point():
                ours.lerp_(theirs, weight=1 - self.decay)
            else:
                ours.copy_(theirs)


class ByName:
    """A loop over named parameters, buffers copied."""

    def __init__(self, model, decay):
        self.model, self.decay = copy.deepcopy(model).eval(), decay

    @torch.no_grad()
    def update(self, model):
        ours = dict(self.model.named_parameters())
        for name, theirs in model.named_parameters():
            ours[name].mul_(self.decay).add_(theirs, alpha=1 - self.decay)
        own = dict(self.model.named_buffers())
        for name, theirs in model.named_buffers():
            own[name].copy_(theirs)


KINDS = {
    "torch": lambda m, d: Averaged(m, d, use_buffers=False),
    "torch with buffers": lambda m, d: Averaged(m, d, use_buffers=True),
    "timm V2": lambda m, d: OverState(m, d, lerp=False),
    "timm V3": lambda m, d: OverState(m, d, lerp=True),
    "by name": ByName,
}


def outputs(model):
    with torch.no_grad():
        return model.eval()(X)


@pytest.mark.parametrize("kind", KINDS)
def test_an_average_that_forgets_at_once_is_the_searching_model(kind):
    model = converted(conv_net())
    csq.set_temperature(model, 1.0)
    mean = KINDS[kind](model, 0.0)  # made after set_temperature: what is infinite stays so in a plain sum
    csq.set_temperature(model, 3.0)
    shake(model)
    for _ in range(3):
        mean.update(model)
    assert torch.equal(outputs(mean.model), outputs(model))
    assert torch.equal(csq.harden(mean.model).eval()(X), csq.harden(model).eval()(X))
    csq.Budget(mean.model, 2.0).freeze()
    assert csq.report(csq.harden(mean.model)).total.paper_bits <= 2.0


@pytest.mark.parametrize("kind", KINDS)
def test_an_average_begun_at_infinity_computes_finite_weights(kind):
    model = converted(conv_net())
    mean = KINDS[kind](model, 0.9)
    for beta in (1.0, 2.0, 50.0):
        csq.set_temperature(model, beta)
        mean.update(model)
        assert outputs(mean.model).isfinite().all()
    assert csq.report(csq.harden(mean.model)).total.paper_bits == 8.0
    csq.set_temperature(mean.model, 2.0)
    assert not next(iter(csq_layers(mean.model).values())).hard


@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999, 1 / 3])
@pytest.mark.parametrize("kind", KINDS)
def test_an_average_of_a_frozen_model_keeps_its_planes_and_hardens_at_the_budget(kind, decay):
    model = shake(converted(conv_net()))
    csq.Budget(model, 2.5).freeze()
    mean = KINDS[kind](model, decay)
    csq.set_temperature(model, 4.0)
    for seed in range(20):
        shake(model, seed)
        mean.update(model)
    exact = csq.harden(mean.model)
    assert [row.planes for row in csq.report(exact).rows] == [row.planes for row in csq.report(model).rows]
    assert csq.report(exact).total.paper_bits <= 2.5
    csq.set_temperature(mean.model, math.inf)
    assert torch.equal(exact.eval()(X), outputs(mean.model))


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_an_average_made_before_the_freeze_refuses_what_comes_after_it(kind, count):
    model = converted(conv_net())
    mean = KINDS[kind](model, 0.9)
    mean.update(model)
    csq.Budget(model, float(count)).freeze()
    with pytest.raises(RuntimeError, match=r"made before budget.freeze\(\).*make averages \(EMA, SWA\) anew"):
        mean.update(model)


def test_a_copy_made_before_a_freeze_is_used_and_saved_as_before(tmp_path):
    """Such as one to try another budget on."""
    model = shake(converted(conv_net()))
    twin = copy.deepcopy(model)
    csq.set_temperature(twin, 3.0)
    expected = outputs(twin)
    csq.Budget(model, 2.0).freeze()
    assert torch.equal(outputs(twin), expected)
    torch.save(twin.state_dict(), tmp_path / "twin.pt")
    fresh = converted(conv_net())
    fresh.load_state_dict(torch.load(tmp_path / "twin.pt", weights_only=True))
    torch.save(twin, tmp_path / "whole.pt")
    again = torch.load(tmp_path / "whole.pt", weights_only=False)
    for other in (fresh, again, copy.deepcopy(twin)):
        assert torch.equal(outputs(other), expected)
    assert {type(p) for p in again.parameters()} == {nn.Parameter}
    budget = csq.Budget(twin, 3.0)
    for optimizer in (torch.optim.SGD(csq.parameter_groups(twin, 0.1), 0.1), torch.optim.AdamW(twin.parameters())):
        before = twin[0].csq.p.detach().clone()
        optimizer.zero_grad()
        (twin.train()(X).square().sum() + budget.penalty(0.5)).backward()
        optimizer.step()
        assert not torch.equal(twin[0].csq.p, before)
    budget.freeze()
    assert csq.report(csq.harden(twin)).total.paper_bits <= 3.0
    assert {type(p) for p in twin.parameters()} == {nn.Parameter}


def test_an_average_hardens_without_its_wrapper():
    model = converted(conv_net())
    mean = AveragedModel(model)
    exact = csq.harden(mean)
    assert type(exact) is nn.Sequential and list(csq.integers(exact)) == list(csq.integers(model))


def test_the_average_of_two_masks_is_refused():
    model, other = (shake(converted(nn.Sequential(nn.Linear(8, 6)), masks="free"), seed) for seed in (0, 1))
    for planes, low in ((model[0].csq, 2), (other[0].csq, 3)):
        with torch.no_grad():
            planes.q.fill_(-1)[low : low + 2] = 1
    for m in (model, other):
        csq.Budget(m, 2.0).freeze()
    mask = model[0].csq.mask
    mask.copy_((mask + other[0].csq.mask + 1) / 2)
    for call in (csq.harden, csq.report, csq.integers):
        with pytest.raises(ValueError, match=r"layer 0 has planes \[.*no freeze made.*average"):
            call(model)


def test_swapping_an_average_into_the_model_and_back():
    model = shake(converted(conv_net()))
    csq.Budget(model, 2.0).freeze()
    mean = AveragedModel(model, use_buffers=True)
    mean.update_parameters(shake(model, 3))
    before = copy.deepcopy(model.state_dict())
    model.load_state_dict(mean.module.state_dict())
    assert csq.report(csq.harden(model)).total.paper_bits <= 2.0
    model.load_state_dict(before)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# Empty copies


def emptied(model):
    """A copy with the model's shape whose memory holds something else."""
    new = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    with torch.no_grad():
        for t in (*new.parameters(), *new.buffers()):
            t.fill_(7)
    return new


def by_state(new, old):
    new.load_state_dict(old.state_dict())


def by_loop(new, old):
    with torch.no_grad():
        for ours, theirs in zip((*new.parameters(), *new.buffers()), (*old.parameters(), *old.buffers()), strict=True):
            ours.copy_(theirs)


@pytest.mark.parametrize("fill", [by_state, by_loop])
@pytest.mark.parametrize("beta", [2.0, math.inf])
@pytest.mark.parametrize("frozen", [False, True])
def test_an_empty_copy_that_gets_the_tensors_is_the_model(frozen, beta, fill):
    model = shake(converted(Net())).eval()
    if frozen:
        csq.Budget(model, 2.5).freeze()
    csq.set_temperature(model, beta)
    new = emptied(model)
    fill(new, model)
    assert torch.equal(new(TOKENS), model(TOKENS))
    assert str(csq.report(new)) == str(csq.report(model))


def test_a_model_on_the_meta_device_gives_shapes():
    model = converted(conv_net()).to("meta").eval()
    assert model(X.to("meta")).shape == (6, 10)


@pytest.mark.parametrize("frozen", [False, True])
def test_all_that_a_layer_needs_is_in_its_tensors(frozen):
    """Whatever else an attribute may say is put wrong here; only a graph in the making may rely on it."""
    model = shake(converted(nn.Linear(9, 7)))
    if frozen:
        csq.Budget(model, 3.0).freeze()
    csq.set_temperature(model, 2.0)
    soft = model.weight.clone()
    tensors = {*model.csq._parameters, *model.csq._buffers}
    for name in set(vars(model.csq)) - set(vars(nn.Linear(1, 1))) - tensors:
        if name not in ("shape", "ahead", "kin", "held"):  # what is held is a search's own, and ends with it
            assert name == "was_hard"
            setattr(model.csq, name, True)
    assert torch.equal(model.weight, soft)
