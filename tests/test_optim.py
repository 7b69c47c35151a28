"""Parameter groups: which parameter trains at which rate, and which decay."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import conv_net, converted, layers_of, mlp, shake, snapshot, unchanged
from torch import nn

import csq_mini as csq

pytestmark = pytest.mark.filterwarnings("ignore:stays float")


def groups_by_name(model, **options):
    return {group["name"]: group for group in csq.parameter_groups(model, 0.1, weight_decay=5e-4, **options)}


@pytest.mark.parametrize("wrap", [lambda m: m, torch.compile, nn.DataParallel])
def test_every_parameter_is_in_exactly_one_group(wrap):
    model = nn.Sequential(conv_net(bias=True), nn.GRU(10, 4))
    csq.convert(model, skip="0.11")
    groups = csq.parameter_groups(wrap(model), 0.1)
    members = [id(p) for group in groups for p in group["params"]]
    assert len(members) == len(set(members)) and set(members) == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("masks", csq.planes.MASKS)
def test_groups_have_the_documented_rates_and_decay(masks):
    model = nn.Sequential(conv_net(bias=True), nn.GRU(10, 4), nn.Linear(30, 20))
    csq.convert(model, skip="0.11", planes=4, masks=masks)
    groups, layers = groups_by_name(model, steps=300), layers_of(model)
    owner = {id(p): group for group in groups.values() for p in group["params"]}
    sizes = [planes.shape.numel() for planes in layers.values()]
    mean = sum(sizes) / len(sizes)
    assert mean / min(sizes) > 10  # so that the cap on a mask's rate is seen
    for size, (name, planes) in zip(sizes, layers.items()):
        assert owner[id(planes.p)]["name"] == owner[id(planes.n)]["name"] == "bit logits"
        rate = 0.1 * min(mean / size, 10) if masks == "free" else 1.5 * 4 / 300
        assert owner[id(planes.q)]["lr"] == pytest.approx(rate)
        assert owner[id(planes.scale)]["lr"] == pytest.approx(0.1 / math.sqrt(size * 15))
        assert owner[id(model.get_submodule(name).bias)]["name"] == "norms and biases"
    norms, weights = (groups[name]["params"] for name in ("norms and biases", "float weights"))
    assert {id(model[0][1].weight), id(model[1].bias_hh_l0)} <= set(map(id, norms))
    assert set(map(id, weights)) == {id(model[0][11].weight), id(model[1].weight_hh_l0), id(model[1].weight_ih_l0)}
    assert groups["bit logits"]["lr"] == 1.0
    assert groups["norms and biases"]["lr"] == groups["float weights"]["lr"] == 0.1
    assert [name for name, group in groups.items() if group["weight_decay"]] == ["float weights"]
    assert groups["float weights"]["weight_decay"] == 5e-4


def test_the_bit_logits_rate_can_be_set_and_untrained_parameters_stay_out():
    model = converted(conv_net(bias=True))
    for p in (model[0].bias, model[3].csq.q):
        p.requires_grad_(False)
    groups = groups_by_name(model, logit_lr=0.7)
    assert groups["bit logits"]["lr"] == 0.7
    members = {id(p) for group in groups.values() for p in group["params"]}
    assert members == {id(p) for p in model.parameters() if p.requires_grad}


def test_a_float_model_has_the_float_groups():
    assert sorted(groups_by_name(conv_net())) == ["float weights", "norms and biases"]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_any_optimizer_takes_the_groups_and_logits_do_not_decay(optimizer):
    model = converted()
    csq.set_temperature(model, 1.0)
    step = optimizer(csq.parameter_groups(model, 0.01, weight_decay=0.5))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    before = snapshot(model)
    step.step()
    assert unchanged(model, before)  # nothing here decays: all layers are converted, norms and biases exempt


@pytest.mark.parametrize("masks, gone", [("free", "mask logits"), ("ordered", "precisions")])
def test_after_the_freeze_rates_stay_and_masks_are_gone(masks, gone):
    model = shake(converted(masks=masks))
    before = groups_by_name(model)
    csq.Budget(model, 2.0).freeze()
    after = groups_by_name(model)
    assert set(before) - set(after) == {name for name in before if name.startswith(gone)} != set()
    assert all(after[name]["lr"] == before[name]["lr"] for name in after)  # by all N planes, and the layer's size
    members = [id(p) for group in after.values() for p in group["params"]]
    trained = {id(p) for name, p in model.named_parameters() if not name.endswith("csq.q")}
    assert len(members) == len(set(members)) and set(members) == trained


@pytest.mark.parametrize("masks", csq.planes.MASKS)
def test_training_moves_bits_masks_and_scales(masks):
    model = shake(converted(mlp(), masks=masks))  # no batch norm, which would leave most scales without a gradient
    budget = csq.Budget(model, 2.0)
    csq.set_temperature(model, 1.0)
    before = {k: v.clone() for k, v in model.named_parameters()}
    optimizer = csq.optimizer(model, lr=0.1, steps=100)
    (F.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.arange(8)) + budget.penalty(0.5)).backward()
    optimizer.step()
    assert not [k for k, v in model.named_parameters() if torch.equal(before[k], v)]


@pytest.mark.parametrize("name", ["lr", "logit_lr", "weight_decay"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "0.1", True])
def test_a_rate_that_is_none_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a finite number"):
        csq.parameter_groups(nn.Linear(2, 2), **{"lr": 0.1, name: value})


OPTIMIZERS = [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam,
              torch.optim.Adafactor]  # fmt: skip


@pytest.mark.parametrize("build", OPTIMIZERS)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_users_own_choice_of_all_parameters_trains_and_every_one_has_a_gradient(frozen, build):
    model = converted(mlp())
    if frozen:
        csq.Budget(model, 2.0).freeze()
    csq.set_temperature(model, 2.0)
    optimizer = build(model.parameters(), lr=0.01)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.randn(4, 1, 8, 8)).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.abs().max() > 0 for p in model.parameters() if p.ndim != 1)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert {"1.csq.p", "1.csq.n", "1.csq.scale"} < set(moved)
    assert csq.report(csq.harden(model)).total.paper_bits == (2.0 if frozen else 8.0)


# csq.optimizer


def driven(kind, steps=50, taken=20, lr=0.1, decay=1.0, state=None, model=None):
    """Precisions after some steps in which the same forces pull at them."""
    model = model or converted(mlp())
    optimizer = csq.optimizer(model, kind, lr, steps=steps)
    if state:
        optimizer.load_state_dict(state)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
    for _ in range(taken):
        for name, p in model.named_parameters():
            p.grad = torch.full_like(p, 1.0 if name.startswith("1.") else 1e-4)
        optimizer.step()
        schedule.step()
    return [float(planes.q.detach()) for planes in layers_of(model).values()], optimizer, model


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("options", [{}, {"lr": 1e-4}, {"decay": 0.8}])
def test_precisions_move_by_their_pace_whatever_the_optimizer_its_rate_and_schedule(kind, options):
    found, *_ = driven(kind, **options)
    expected = 8 - 20 * 1.5 * 8 / 50  # steps times pace, for a force large or small
    assert found == pytest.approx([expected, expected], rel=1e-4)


@pytest.mark.parametrize("steps", [1, 30, 3000])
def test_a_precision_crosses_all_planes_in_a_search_of_any_length(steps):
    found, *_ = driven("sgd", steps=steps, taken=-(-steps * 2 // 3))
    assert max(found) <= 0.01


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_an_optimizer_goes_on_from_its_state(kind):
    whole, *_ = driven(kind, taken=20)
    _, optimizer, model = driven(kind, taken=12)
    rest, *_ = driven(kind, taken=8, state=optimizer.state_dict(), model=model)
    assert rest == whole


def test_an_optimizer_is_torchs_but_for_precisions():
    for kind, cls in (("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
        theirs.load_state_dict(ours.state_dict())
        rule = {"momentum": 0.9, "nesterov": True} if kind == "sgd" else {"betas": (0.9, 0.999)}
        pair = [(ours, csq.optimizer(ours, kind, 0.01, steps=10)),
                (theirs, cls(csq.parameter_groups(theirs, 0.01), lr=0.01, fused=True, **rule))]  # fmt: skip
        for model, optimizer in pair:
            for step in range(5):
                loss = optimizer.step(lambda m=model: closure(m))
                assert loss.ndim == 0 and step >= 0
        assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)


def closure(model):
    model.zero_grad()
    loss = model(torch.ones(2, 3)).square().sum()
    loss.backward()
    return loss


def test_bit_logits_have_a_rate_with_which_they_decide():
    made = {kind: csq.optimizer(converted(mlp()), kind, steps=600) for kind in ("sgd", "adam", "adamw")}
    rates = {kind: {group["name"]: group["lr"] for group in one.param_groups} for kind, one in made.items()}
    assert {kind: found["bit logits"] for kind, found in rates.items()} == pytest.approx(
        {"sgd": 1.0, "adam": 0.1, "adamw": 0.1})  # fmt: skip
    assert rates["adam"]["norms and biases"] == 1e-3


@pytest.mark.parametrize("changes, message", [
    ({"kind": "adma"}, "unknown kind of optimizer 'adma'; did you mean adam"), ({"lr": -1}, "lr must be"),
    ({"steps": 0}, "steps"), ({"momentum": 1.0}, "momentum must be .*1.0"), ({"momentum": -0.1}, "momentum"),
    ({"logit_lr": -1}, "logit_lr"), ({"weight_decay": float("nan")}, "weight_decay"),
])  # fmt: skip
def test_an_optimizer_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        csq.optimizer(converted(mlp()), **{"steps": 10, **changes})


def test_a_trained_network_without_batch_norm_survives_the_default_rates():
    """At three times the rate its units die in the first steps, and it stays at chance."""
    torch.manual_seed(0)
    data = csq.data.digits()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    recipe = csq.recipes.get("digits", logit_lr=None, search_epochs=5, finetune_epochs=4, target=None)
    net = csq.fit(net, data, recipe, progress=False).model
    low = {rate: recipe.replace(target=1.2, logit_lr=rate) for rate in (None, 3.0)}
    found = {rate: csq.fit(net, data, one, progress=False) for rate, one in low.items()}
    dead = {rate: float((r.model[:5](data.train[0]).amax(0) <= 0).float().mean()) for rate, r in found.items()}
    assert found[None].accuracy > 0.9 and dead[None] < 0.4
    assert found[3.0].accuracy < 0.85 and dead[3.0] > dead[None]
