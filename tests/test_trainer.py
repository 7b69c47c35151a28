"""Trainer: a step and an epoch at a time, equal to fit to the bit, stopped and continued anywhere."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from conftest import conv_net, converted, few_digits, mlp, same_state, snapshot, unchanged
from torch import nn

import csq_mini as csq
from csq_mini.planes import csq_layers
from csq_mini.train.progress import is_frozen

RECIPE = csq.Recipe(target=3.0, search_epochs=2, finetune_epochs=2, batch_size=32, recalibration_batches=2)
RECIPES = {
    "both": RECIPE, "no search": RECIPE.replace(search_epochs=0), "no finetune": RECIPE.replace(finetune_epochs=0),
    "float": RECIPE.replace(target=None), "activations": RECIPE.replace(activation_bits=4),
    "one rate": RECIPE.replace(one_rate=True), "free": RECIPE.replace(masks="free"),
    "adam": RECIPE.replace(optimizer="adam", lr=0.01), "adamw": RECIPE.replace(optimizer="adamw", lr=0.01),
    "held": RECIPE.replace(hold=True), "held, no finetune": RECIPE.replace(hold=True, finetune_epochs=0),
}  # fmt: skip
TIMES = ("seconds", "images_per_second")


def network():
    """Batch norm and dropout: all that has a state."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
                         nn.Linear(144, 10))  # fmt: skip


def trainer_of(recipe=RECIPE, **options):
    trainer = csq.Trainer(network(), few_digits(), recipe, **options)
    torch.manual_seed(recipe.seed)
    return trainer


def timeless(history):
    return [{k: v for k, v in entry.items() if k not in TIMES} for entry in history]


def end_of(trainer):
    """Train to the end: the weights, and the history without its times."""
    while len(trainer.history) * trainer.epoch_steps < trainer.steps_total:
        trainer.epoch()
    assert trainer.done
    return trainer.model.state_dict(), timeless(trainer.history)


def assert_same_end(a, b):
    assert same_state(a[0], b[0]) and a[1] == b[1]


@pytest.fixture(scope="module", params=RECIPES)
def ended(request):
    """A trainer that went through in one piece, by its recipe."""
    trainer = trainer_of(RECIPES[request.param])
    end_of(trainer)
    return trainer


# Steps and epochs


def test_a_training_of_epochs_is_that_of_fit(ended):
    result = csq.fit(network(), few_digits(), ended.recipe, progress=False)
    assert timeless(ended.history) == timeless(result.history.to_dict("records"))
    model = ended.hardened() if ended.budget else ended.model
    assert same_state(model, result.model)


def test_steps_alone_train_what_epochs_train(ended):
    trainer = trainer_of(ended.recipe)
    for step in range(trainer.steps_total):
        assert not trainer.done and trainer.steps_done == step
        trainer.step()
    assert trainer.done and trainer.history == []
    if trainer.recipe.finetune_epochs or not trainer.budget:  # else the freeze comes after the last epoch
        assert same_state(trainer.model, ended.model)


def test_a_training_says_where_it_stands():
    trainer, seen = trainer_of(), []
    trainer.on_step = lambda: seen.append((trainer.phase, trainer.progress.step, trainer.steps_done))
    assert (trainer.phase, trainer.steps_done, trainer.done) == ("search", 0, False)
    assert (trainer.epoch_steps, trainer.steps, trainer.steps_total) == (4, 8, 16)
    end_of(trainer)
    assert seen == [("search", k, k) for k in range(1, 9)] + [("finetune", k, k + 8) for k in range(1, 9)]
    with pytest.raises(ValueError, match=r"training is done: trainer.hardened\(\)"):
        trainer.step()
    with pytest.raises(ValueError, match="training is done"):
        trainer.epoch()


def test_each_epoch_is_told_once_with_its_entry_of_the_history():
    trainer, told = trainer_of(), []
    trainer.on_epoch = lambda entry: told.append((entry, trainer.steps_done, len(trainer.history)))
    returned = [trainer.epoch() for _ in range(4)]
    assert [entry for entry, *_ in told] == returned == trainer.history
    assert [rest for _, *rest in told] == [[4, 1], [8, 2], [12, 3], [16, 4]]
    assert [entry["phase"] for entry in returned] == ["search", "search", "finetune", "finetune"]


def test_an_epoch_begun_by_steps_is_ended_by_epoch_and_counted_once(ended):
    for by_hand in (1, 3, 4):
        trainer = trainer_of(ended.recipe)
        for _ in range(by_hand):
            trainer.step()
        assert_same_end(end_of(trainer), (ended.model.state_dict(), timeless(ended.history)))


def test_a_step_returns_its_loss_without_the_penalty_and_the_history_their_mean():
    trainer, losses = trainer_of(), []
    for _ in range(4):
        x, y = few_digits().training_batch(32, 0, trainer.steps_done)
        twin, rng = copy.deepcopy(trainer.model).train(), torch.get_rng_state()
        csq.set_temperature(twin, trainer.beta())
        expected = F.cross_entropy(twin(x), y)
        torch.set_rng_state(rng)
        losses.append(trainer.step())
        assert torch.equal(losses[-1], expected.detach()) and losses[-1].shape == ()
    entry = trainer.epoch()  # all its steps are taken: it is judged
    assert trainer.steps_done == 4 and entry["loss"] == pytest.approx(float(sum(losses)) / 4, rel=1e-5)


def test_batches_of_ones_own_can_be_given():
    data, trainer, own = few_digits(), trainer_of(), trainer_of()
    x, y = data.train
    for step in range(8):
        torch.manual_seed(step)
        trainer.step()
        torch.manual_seed(step)
        own.step(data.training_batch(32, 0, step))
    assert same_state(own.model, trainer.model)
    before, images = copy.deepcopy(own.model.state_dict()), own.meter.images
    own.step((x[:5], y[:5]))  # of another size, in the finetune
    assert (images, own.meter.images) == (8 * 32, 8 * 32 + 5)
    assert own.phase == "finetune" and not same_state(own.model.state_dict(), before)


def test_the_model_is_trained_in_place():
    model = network()
    trainer = csq.Trainer(model, few_digits(), RECIPE)
    assert trainer.model is model and set(csq_layers(model)) == {"0", "5"}
    before = model[0].weight.detach().clone()
    trainer.epoch()
    assert not torch.equal(model[0].weight, before)
    hard = trainer.hardened()
    assert csq.integers(hard) and csq_layers(model) and not torch.equal(hard[1].running_mean, model[1].running_mean)


# What can be steered


def test_a_temperature_can_be_held_and_let_go():
    trainer = trainer_of()
    betas = []
    trainer.on_step = lambda: betas.append(float(trainer.model[0].csq.beta))
    for held in (None, 7.0, 7.0, None):
        trainer.temperature = held
        trainer.step()
    expected = [csq.temperature(step / 8) for step in range(4)]
    assert betas == pytest.approx([expected[0], 7.0, 7.0, expected[3]])


def test_a_new_target_is_steered_to_and_kept_by_the_freeze():
    trainer = trainer_of()
    trainer.epoch()
    masks = trainer.model[0].csq.q.detach().clone()
    trainer.retarget(1.5)
    assert torch.equal(trainer.model[0].csq.q, masks) and trainer.budget.target == 1.5
    end_of(trainer)
    assert csq.report(trainer.hardened()).total.paper_bits <= 1.5
    with pytest.raises(ValueError, match="frozen, and with them the precision"):
        trainer.retarget(4.0)
    fresh = trainer_of()
    with pytest.raises(ValueError, match="9 cannot be reached"):
        fresh.retarget(9)
    assert fresh.budget.target == 3.0


def test_rates_go_by_a_function_of_ones_own():
    trainer, asked = trainer_of(), []
    trainer.rate = lambda step, steps, warmup: asked.append((step, steps, warmup)) or 0.25
    trainer.step()
    assert asked == [(0, 8, 4.0)]
    assert all(group["lr"] == 0.25 * group["peak"] for group in trainer.optimizer.param_groups)
    peaks = {group["name"]: group["peak"] for group in trainer.optimizer.param_groups}
    assert peaks["bit logits"] == 1.0 and peaks["norms and biases"] == 0.1


def test_one_rate_gives_every_parameter_the_same():
    trainer, seen = trainer_of(RECIPES["one rate"]), []
    trainer.on_step = lambda: seen.append({group["lr"] for group in trainer.optimizer.param_groups})
    end_of(trainer)
    assert len(seen) == 16 and all(len(rates) == 1 for rates in seen) and max(map(max, seen)) <= RECIPE.lr


def test_bfloat16_changes_the_steps_and_not_the_judgement():
    wide, half = trainer_of(), trainer_of(bfloat16=True)
    kinds = []
    half.model[5].register_forward_hook(lambda module, inputs, output: kinds.append((module.training, output.dtype)))
    assert float(half.step()) == pytest.approx(float(wide.step()), rel=0.05)
    half.epoch()
    assert set(kinds) == {(True, torch.bfloat16), (False, torch.float32)}
    assert all(p.dtype == torch.float32 for p in half.model.parameters())


# States


def through_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def states_of(trainer):
    """The state at the start, after each step, and after each epoch is judged, with the step it belongs to."""
    states = [(0, through_file(trainer.state_dict()))]
    trainer.on_step = lambda: states.append((trainer.steps_done, through_file(trainer.state_dict())))
    trainer.on_epoch = lambda entry: states.append((trainer.steps_done, through_file(trainer.state_dict())))
    end_of(trainer)
    return states


def test_a_training_goes_on_bit_identically_from_every_state(ended):
    end = ended.model.state_dict(), timeless(ended.history)
    for step, state in states_of(trainer_of(ended.recipe)):
        fresh = csq.Trainer(network(), few_digits(), ended.recipe)
        torch.manual_seed(99)
        fresh.load_state_dict(state)
        assert fresh.steps_done == step
        assert_same_end(end_of(fresh), end)


def test_a_trainer_goes_back_to_an_earlier_state_of_its_phase(ended):
    trainer = trainer_of(ended.recipe)
    states = [(trainer.phase, state) for _, state in states_of(trainer)]
    end = trainer.model.state_dict(), timeless(trainer.history)
    assert_same_end((ended.model.state_dict(), timeless(ended.history)), end)
    end = copy.deepcopy(end)
    frozen = [s for _, s in states if is_frozen(s["model"]) or not trainer.budget]
    for state in frozen[:: max(len(frozen) // 4, 1)]:
        trainer.on_step = trainer.on_epoch = None
        trainer.load_state_dict(state)
        assert_same_end(end_of(trainer), end)


def test_a_frozen_trainer_does_not_go_back_to_the_search():
    trainer = trainer_of()
    state = through_file(trainer.state_dict())
    end_of(trainer)
    before = trainer.progress, copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(ValueError, match="saved before budget.freeze"):
        trainer.load_state_dict(state)
    assert trainer.progress == before[0] and same_state(trainer.model.state_dict(), before[1])


def test_a_changed_target_and_a_held_temperature_go_on_too():
    def changed():
        trainer = trainer_of()
        for _ in range(3):
            trainer.step()
        trainer.retarget(2.0)
        trainer.temperature = 7.0
        return trainer

    whole = changed()
    state, end = through_file(whole.state_dict()), end_of(whole)
    later = csq.Trainer(network(), few_digits(), RECIPE)
    later.load_state_dict(state)
    assert (later.budget.target, later.temperature) == (2.0, 7.0)
    assert_same_end(end_of(later), end)
    after = csq.Trainer(network(), few_digits(), RECIPE)
    after.load_state_dict(through_file(whole.state_dict()))
    assert after.budget.target == 2.0 and after.budget.bits() <= 2.0


def other_network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize("change, message", [
    (lambda s: {}, "no state of a Trainer"), (lambda s: None, "no state"), (lambda s: s["model"], "no state"),
    (lambda s: {k: v for k, v in s.items() if k != "rng"}, "no state"), (lambda s: s | {"step": 99}, "step 99"),
    (lambda s: s | {"phase": 2}, "phase 2"), (lambda s: s | {"still": ["1"]}, r"keeps \['1'\] in evaluation mode"),
    (lambda s: s | {"model": other_network().state_dict()}, "its model differs in 0"),
    (lambda s: csq.Trainer(other_network(), few_digits(), RECIPE).state_dict(), "its model differs in 0"),
])  # fmt: skip
def test_a_foreign_state_is_refused_and_changes_nothing(change, message):
    trainer = trainer_of()
    trainer.step()
    before = copy.deepcopy(trainer.state_dict())
    with pytest.raises(ValueError, match=message):
        trainer.load_state_dict(change(through_file(trainer.state_dict())))
    after = trainer.state_dict()
    assert same_state(after["model"], before["model"]) and after["target"] == before["target"]
    assert (after["phase"], after["step"], after["history"]) == (before["phase"], before["step"], before["history"])


# Modes


def frozen_norm():
    """The network with its batch norm in evaluation mode, its statistics unlike any data's."""
    model = network()
    model[1].eval().running_mean.fill_(0.5)
    return model


def test_what_is_in_evaluation_mode_stays_so_and_keeps_its_statistics():
    def seen(trainer):
        modes = []
        trainer.on_step = lambda: modes.append([m.training for m in trainer.model])
        return modes

    for recipe in (RECIPE, RECIPE.replace(target=None)):
        trainer = csq.Trainer(frozen_norm(), few_digits(), recipe)
        modes = seen(trainer)
        trainer.epoch()
        state = through_file(trainer.state_dict())
        end_of(trainer)
        assert all(mode == [i != 1 for i in range(6)] for mode in modes) and len(modes) == 16
        assert (trainer.model[1].running_mean == 0.5).all()
        if trainer.budget:
            assert (trainer.hardened()[1].running_mean == 0.5).all() and not trainer.hardened().training
        resumed = csq.Trainer(frozen_norm(), few_digits(), recipe)
        resumed.load_state_dict(state)
        assert_same_end(end_of(resumed), (trainer.model.state_dict(), timeless(trainer.history)))


def test_a_model_handed_over_in_evaluation_mode_as_a_whole_trains_as_a_whole():
    trainer = csq.Trainer(network().eval(), few_digits(), RECIPE)
    torch.manual_seed(0)
    assert_same_end(end_of(trainer), end_of(trainer_of()))


def test_the_trial_before_all_changes_neither_model_nor_random_numbers():
    model, seen = network().eval(), []
    before, numbers = snapshot(model), torch.get_rng_state()
    model.register_forward_hook(lambda *_: seen.append(torch.rand(())))
    csq.Trainer(model, few_digits(), RECIPE.replace(target=None))
    assert seen and unchanged(model, before) and torch.equal(torch.get_rng_state(), numbers)


# Refusals, and what a step may not do


@pytest.mark.parametrize("recipe, message", [
    ({"target": 0.5}, "0.5 cannot be reached.*between 1 and 8"), ({"skip": ("nothing",)}, "matches no layer"),
    ({"floor": 9}, "floor.*9"),
])  # fmt: skip
def test_a_recipe_that_does_not_fit_is_refused(recipe, message):
    with pytest.raises(ValueError, match=message):
        csq.Trainer(network(), few_digits(), RECIPE.replace(**recipe))


def test_a_converted_model_is_refused():
    with pytest.raises(ValueError, match="converted already"):
        csq.Trainer(converted(mlp()), few_digits(), RECIPE)


def test_a_loss_that_is_no_number_ends_the_training_with_the_rates_to_lower():
    factors = iter([1, 1, 1] + [float("nan")] * 9)  # one for the trial before all, two good steps
    trainer = trainer_of(loss=lambda outputs, targets: outputs.sum() * next(factors))
    with pytest.raises(ValueError, match=r"loss became nan by step 4 of the search.*lower lr \(0.1\) or logit_lr"):
        trainer.epoch()
    with pytest.raises(ValueError, match="loss of the first batch is nan, before any training: look"):
        trainer_of(loss=lambda outputs, targets: outputs.sum() * float("nan"))


def test_rates_and_batches_of_the_users_own_are_checked_at_each_step():
    trainer = trainer_of()
    for rate in (float("nan"), -1.0, None):
        trainer.rate = lambda *args, rate=rate: rate
        with pytest.raises(ValueError, match=r"trainer.rate\(...\) must be a finite number of at least 0"):
            trainer.step()
    trainer = trainer_of()
    for batch in (torch.zeros(2, 1, 8, 8), (), (torch.zeros(2, 1, 8, 8),), {"x": 1}):
        with pytest.raises(ValueError, match="a batch must be a pair of inputs and targets"):
            trainer.step(batch)
    trainer.temperature = float("nan")
    with pytest.raises(ValueError, match="a temperature must be"):
        trainer.step()
    assert trainer.steps_done == 0


def test_weights_that_diverge_are_noticed_with_the_step():
    trainer = trainer_of(RECIPE.replace(target=None))
    trainer.on_step = lambda: trainer.progress.step == 4 and trainer.model[5].weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="judging after step 4 of the float phase: outputs of the model are NaN"):
        trainer.epoch()


class NoWaiting(torch.utils._python_dispatch.TorchDispatchMode):
    """Fails where a value of a tensor is asked for, for which a GPU would have to finish first."""

    WAITS = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "unique", "masked_select")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in func.__name__ for name in self.WAITS), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["both", "float", "activations"])
def test_no_training_step_but_the_freeze_waits_for_the_device(name, monkeypatch):
    monkeypatch.setattr(csq.planes.Planes, "hard", property(lambda planes: planes.was_hard))  # as it is on a GPU
    trainer = trainer_of(RECIPES[name])
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        float(torch.ones(()))
    while not trainer.done:
        if trainer.budget and trainer.steps_done == 8:
            trainer.step()  # the freeze
        with NoWaiting():
            trainer.step()


@pytest.mark.parametrize("changes, message", [
    ({"target": 9.0}, "target 9.0 cannot be reached"), ({"target": 0.5}, "cannot be reached"),
    ({"target": 2.0, "skip": ("nothing",)}, "matches no layer"), ({"target": 2.0, "floor": 5}, "cannot be reached"),
])  # fmt: skip
def test_a_trainer_that_is_refused_leaves_the_model_as_it_was(changes, message):
    model = conv_net()
    kinds, before = [type(m) for m in model.modules()], copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        csq.Trainer(model, few_digits(), RECIPE.replace(activation_bits=3, **changes))
    assert [type(m) for m in model.modules()] == kinds and same_state(model, before)
