"""What was made before the freeze and used after it: always a clear error, and made anew it works."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import conv_net, converted, same_state, shake
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import csq_mini as csq
from csq_mini.planes import csq_layers

X, Y = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 10


def frozen(model, target):
    csq.Budget(model, target).freeze()
    return model


def train_a_step(model, optimizer=None, inputs=X):
    csq.set_temperature(model, 2.0)
    outputs = model(inputs)
    F.cross_entropy(outputs, Y % outputs.shape[1]).backward()
    if optimizer:
        optimizer.step()


# Optimizers

OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {"momentum": 0.9}), "Adam": (torch.optim.Adam, {}), "AdamW": (torch.optim.AdamW, {}),
    "RMSprop": (torch.optim.RMSprop, {}),
}  # fmt: skip
HOW = {"plain": {}, "for loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


@pytest.mark.parametrize("kind, how", [
    (kind, how) for kind in OPTIMIZERS for how in HOW if (kind, how) != ("RMSprop", "fused")  # torch has none
])  # fmt: skip
def test_an_optimizer_made_before_the_freeze_is_refused_wherever_it_is_used(kind, how):
    build, options = OPTIMIZERS[kind]
    model = converted()
    old = build(csq.parameter_groups(model, 0.01), **options, **HOW[how])
    train_a_step(model, old)
    frozen(model, 3.0)
    train_a_step(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for use in (old.step, old.zero_grad, lambda: old.zero_grad(set_to_none=False)):
        with pytest.raises(RuntimeError, match=r"optimizer was made before budget.freeze\(\).*csq.parameter_groups"):
            use()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    train_a_step(model, build(csq.parameter_groups(model, 0.01), **options, **HOW[how]))
    assert not torch.equal(model[0].csq.p, before["0.csq.p"])


def test_clipping_the_gradients_of_old_parameters_is_refused_too():
    model = converted()
    old = list(model.parameters())
    frozen(model, 3.0)
    train_a_step(model)
    with pytest.raises(RuntimeError, match="made before budget.freeze"):
        nn.utils.clip_grad_norm_(old, 1.0)
    assert nn.utils.clip_grad_norm_(model.parameters(), 1.0) > 0


def test_an_old_optimizer_can_be_thrown_away():
    model = converted()
    old = torch.optim.SGD(csq.parameter_groups(model, 0.01), momentum=0.9)
    train_a_step(model, old)
    frozen(model, 3.0)
    del old
    copy.deepcopy(model)


# Data parallel


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A process group of this one process."""
    if not torch.distributed.is_available():
        pytest.skip("this torch has no distributed package")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def wrap(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.parallel.DistributedDataParallel(model)


@pytest.mark.parametrize("target", [1.0, 3.0, 8.0])
def test_a_ddp_wrapper_made_before_the_freeze_is_refused_in_training(alone, target):
    model = converted()
    old = wrap(model)
    train_a_step(old)
    frozen(old, target)
    with pytest.raises(RuntimeError, match=r"wrapped in DDP before budget.freeze\(\).*again after the freeze"):
        train_a_step(old)
    model.zero_grad()
    train_a_step(wrap(model))
    assert all(planes.p.grad.any() for planes in csq_layers(model).values())


def test_the_model_itself_still_runs_beside_an_old_wrapper(alone):
    model = converted().eval()
    old = wrap(model)
    frozen(model, 3.0)
    assert torch.equal(csq.harden(old)(X), model(X))


# Compiled


def test_a_model_compiled_before_the_freeze_goes_on_after_it():
    model = converted(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    train_a_step(fast)
    csq.Budget(fast, 3.0).freeze()
    shake(model)
    grads = []
    for which in (fast, model):
        model.zero_grad()
        train_a_step(which)
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))
    assert sum(bool(g.any()) for g in grads[0]) == len(grads[0]) - 1  # all but the mask logits, which count no more


# Averaged copies (EMA, SWA)


def linear():
    return nn.Linear(64, 10, bias=False)


BUILD = {"a network": (conv_net, X), "a layer without bias": (linear, X.flatten(1)),
         "a single weight": (lambda: nn.Linear(1, 1, bias=False), X.flatten(1)[:, :1])}  # fmt: skip


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)], ids=["swa", "ema"])
@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("first", ["before any update", "after an update"])
@pytest.mark.parametrize("build", BUILD)
@pytest.mark.parametrize("count", range(1, 9))
def test_an_average_made_before_the_freeze_cannot_be_updated_after_it(count, build, first, use_buffers, average):
    make, _ = BUILD[build]
    model = converted(make())
    mean = AveragedModel(model, multi_avg_fn=average, use_buffers=use_buffers)
    if first == "after an update":
        mean.update_parameters(shake(model))
    frozen(model, float(count))
    with pytest.raises((RuntimeError, ValueError)):
        mean.update_parameters(model)


@pytest.mark.parametrize("build", BUILD)
@pytest.mark.parametrize("count", range(1, 9))
def test_an_average_of_ones_own_made_before_the_freeze_cannot_be_updated_after_it(build, count):
    make, _ = BUILD[build]
    model = converted(make())
    mean = copy.deepcopy(model)
    frozen(model, float(count))
    with pytest.raises(RuntimeError), torch.no_grad():
        for ours, theirs in zip(mean.parameters(), model.parameters()):
            ours.mul_(0.9).add_(theirs, alpha=0.1)


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("build", ["a network", "a layer without bias"])
def test_an_average_made_after_the_freeze_works_and_hardens_to_the_budget(build, use_buffers):
    make, inputs = BUILD[build]
    model = frozen(converted(make()), 3.0)
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers)
    optimizer = torch.optim.SGD(csq.parameter_groups(model, 0.5), momentum=0.9)
    for _ in range(5):
        train_a_step(model, optimizer, inputs)
        mean.update_parameters(model)
    ours, theirs = (next(iter(csq_layers(m).values())) for m in (mean, model))
    assert not torch.equal(ours.p, theirs.p) and torch.equal(ours.mask, theirs.mask)
    exact = csq.harden(mean)
    assert csq.report(exact).total.paper_bits <= 3.0 and csq.integers(exact)


# state_dicts of the other phase


def outputs(model, beta=3.0):
    csq.set_temperature(model, beta)
    with torch.no_grad():
        return model.eval()(X)


def searched(seed=0):
    torch.manual_seed(seed)
    return shake(converted(conv_net(bias=True)), seed)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_frozen_state_does_not_go_into_a_model_that_searches(prefix):
    state = frozen(searched(), 2.5).state_dict()
    model = searched(1)
    before = {k: v.clone() for k, v in model.state_dict().items() if ".csq." in k}
    whole = nn.Sequential(model) if prefix else model
    with pytest.raises(RuntimeError, match=r"0.csq was saved after budget.freeze\(\), and this model searches: "
                                           r"call budget.freeze\(like=state_dict\), then load"):  # fmt: skip
        whole.load_state_dict({f"{prefix and '0.'}{k}": v for k, v in state.items()})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if k in before)


def test_a_searching_state_does_not_go_into_a_frozen_model():
    model = frozen(searched(), 2.5)
    before = {k: v.clone() for k, v in model.state_dict().items() if ".csq." in k}
    with pytest.raises(RuntimeError, match=r"0.csq was saved before budget.freeze\(\), and this model is frozen: "
                                           "load it into a model not frozen"):  # fmt: skip
        model.load_state_dict(searched(1).state_dict())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if k in before)
    fresh = searched(2)
    fresh.load_state_dict(searched(1).state_dict())
    assert torch.equal(outputs(fresh), outputs(searched(1)))


@pytest.mark.parametrize("floor", [0, 1])
@pytest.mark.parametrize("target", [1.0, 2.5, 8.0])
def test_freezing_like_a_state_and_loading_it_gives_the_model_to_the_bit(target, floor):
    model = searched()
    csq.Budget(model, target, floor=floor).freeze()
    shake(model, 5)
    fresh = searched(1)
    budget = csq.Budget(fresh, target, floor=floor)
    counts = budget.freeze(like=model.state_dict())
    assert counts == {name: int(planes.open.sum()) for name, planes in csq_layers(model).items()}
    fresh.load_state_dict(model.state_dict())
    assert budget.frozen and budget.bits() <= target and same_state(fresh, model)
    assert torch.equal(outputs(fresh), outputs(model))
    assert torch.equal(csq.harden(fresh)(X), csq.harden(model)(X))
    assert str(csq.report(fresh)) == str(csq.report(model))


def test_freezing_like_a_state_that_does_not_fit_is_refused_and_freezes_nothing():
    for like, message in (
        (searched(1).state_dict(), "saved after a freeze; this one was saved before one"),
        (frozen(converted(nn.Sequential(nn.Linear(4, 4))), 2.0).state_dict(), "has no 3.csq.mask"),
        (frozen(converted(planes=4), 2.0).state_dict(), "0.csq.mask .*4 planes.* 8"),
        (frozen(searched(1), 5.0).state_dict(), "5 bits.*above the target 2.5"),
    ):
        model = searched()
        with pytest.raises(ValueError, match=message):
            csq.Budget(model, 2.5).freeze(like=like)
        assert same_state(model, searched())
