"""fit: its result and history, the last epoch, repeatability, and what it refuses."""

import copy

import pandas
import pytest
import torch
import torch.nn.functional as F
from conftest import conv_net, converted, few_digits, mlp, same_history, same_state, snapshot, unchanged
from torch import nn

import csq_mini as csq

SHORT = csq.Recipe(target=3.0, search_epochs=2, finetune_epochs=2, batch_size=32, recalibration_batches=2)
TIMES = ["seconds", "images_per_second"]


def short_fit(model=None, recipe=SHORT, data=None, **options):
    torch.manual_seed(0)
    return csq.fit(model or conv_net(), data or few_digits(), recipe, progress=False, **options)


@pytest.fixture(scope="module")
def result():
    return short_fit()


def test_history_has_a_row_an_epoch_and_the_documented_columns(result):
    history = result.history
    layers = [f"bits/{name}" for name in ("0", "3", "6", "11")]
    assert isinstance(history, pandas.DataFrame)
    assert list(history) == ["phase", "epoch", "step", "loss", "soft", "hard", *TIMES, "beta", "bits", "cut", *layers]
    assert history["phase"].tolist() == ["search"] * 2 + ["finetune"] * 2 and history["epoch"].tolist() == [1, 2, 3, 4]
    assert history["step"].tolist() == [4, 8, 4, 8]
    assert history[["soft", "hard"]].map(lambda a: 0 <= a <= 1).all(axis=None) and (history["loss"] > 0).all()
    sizes = [36, 36, 12, 60]
    assert history["bits"].tolist() == pytest.approx([
        sum(n * row[name] for n, name in zip(sizes, layers)) / sum(sizes) for row in history.to_dict("records")
    ])  # fmt: skip


def test_temperature_rises_every_step_and_twice_over(result):
    expected = [csq.temperature(step / 8) for step in (3, 7, 3, 7)]  # of the last step in each epoch
    assert result.history["beta"].tolist() == pytest.approx(expected, rel=1e-6)


def test_the_budget_is_kept_from_the_freeze_on(result):
    frozen = result.history[result.history["phase"] == "finetune"]
    assert (frozen["bits"] <= 3.0).all() and frozen["bits"].nunique() == 1
    assert result.report.total.paper_bits == pytest.approx(frozen["bits"].iloc[0])


def test_the_result_is_a_hardened_recalibrated_plain_model(result):
    model = result.model
    assert [type(m) for m in model.modules()] == [type(m) for m in conv_net().modules()] and not model.training
    assert csq.integers(model) and str(csq.report(model)) == str(result.report)
    data = few_digits()
    with torch.no_grad():
        assert result.accuracy == pytest.approx(float(csq.accuracy(model(data.test[0]), data.test[1])), abs=1e-7)
        assert result.history["hard"].iloc[-1] == pytest.approx(
            float(csq.accuracy(model(data.valid[0]), data.valid[1])), abs=1e-7
        )
    twin = copy.deepcopy(model)
    csq.recalibrate(twin, [data.train[0]])
    assert all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(twin.buffers(), model.buffers()) if a.is_floating_point()
    )


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    model, data = mlp(), few_digits()  # with dropout
    torch.manual_seed(1)
    first = csq.fit(model, data, SHORT, progress=False)
    torch.manual_seed(2)  # whatever was drawn before
    again = csq.fit(model, data, SHORT, progress=False)
    other = csq.fit(model, data, SHORT.replace(seed=1), progress=False)
    assert same_state(again.model, first.model) and same_history(again.history, first.history)
    assert again.accuracy == first.accuracy and str(again.report) == str(first.report)
    assert not same_state(other.model, first.model) and not same_history(other.history, first.history)


def test_the_given_model_and_data_stay_as_they_are():
    model, data = mlp(), few_digits()
    before, inputs = snapshot(model), data.train[0].clone()
    short_fit(model, data=data)
    assert unchanged(model, before) and torch.equal(data.train[0], inputs)


def test_the_test_split_is_looked_at_once_at_the_end():
    model, seen, judged = conv_net(), [], []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))

    def metric(outputs, targets):
        judged.append(len(targets))
        return csq.accuracy(outputs, targets)

    short_fit(model, metric=metric)
    assert seen.count(50) == judged.count(50) == 1 and seen[-1] == judged[-1] == 50  # only the test split has 50
    assert judged.count(40) == 1 + 2 * 4  # before all, and soft and hard, each epoch


def test_the_last_epoch_is_reported_even_if_an_earlier_was_better():
    scores = iter([0.0, 0.9, 0.9, 0.8, 0.8, 0.5, 0.5, 0.3, 0.2, 0.1])  # the first before all
    result = short_fit(metric=lambda outputs, targets: next(scores))
    assert result.accuracy == 0.1 and result.history["hard"].tolist() == [0.9, 0.8, 0.5, 0.2]
    data = few_digits()
    ended = short_fit()
    assert same_state(result.model, ended.model)  # the metric steers nothing
    assert ended.accuracy == pytest.approx(float(csq.accuracy(ended.model(data.test[0]), data.test[1])), abs=1e-7)


def test_without_a_target_the_model_stays_float():
    result = short_fit(recipe=SHORT.replace(target=None))
    assert result.report is None and result.recipe.target is None
    assert list(result.history) == ["phase", "epoch", "step", "loss", "soft", "hard", *TIMES]
    assert len(result.history) == 4
    assert result.history["hard"].equals(result.history["soft"]) and set(result.history["phase"]) == {"float"}
    with pytest.raises(ValueError, match="no quantized layer"):
        csq.integers(result.model)


def test_without_a_search_every_layer_keeps_the_same_planes():
    result = short_fit(recipe=SHORT.replace(target=2.0, search_epochs=0, finetune_epochs=1))
    assert [row.paper_bits for row in result.report.rows] == [2] * 4
    assert result.history["phase"].tolist() == ["finetune"]


def test_without_a_finetune_the_budget_is_kept_too():
    result = short_fit(recipe=SHORT.replace(target=2.5, finetune_epochs=0))
    assert result.report.total.paper_bits <= 2.5 and result.history["phase"].tolist() == ["search"] * 2


def test_any_loss_and_metric_and_shape_of_target():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 6, generator=generator)
    y = x @ torch.randn(6, 2, generator=generator)
    data = csq.data.Data("plane", (x[:400], y[:400]), (x[400:500], y[400:500]), (x[500:], y[500:]))

    def explained(outputs, targets):
        return 1 - (outputs - targets).square().mean() / targets.square().mean()

    recipe = csq.Recipe(target=6.0, search_epochs=20, finetune_epochs=20, batch_size=50)
    result = csq.fit(nn.Linear(6, 2), data, recipe, loss=F.mse_loss, metric=explained, progress=False)
    assert result.accuracy > 0.95 and result.report.total.paper_bits <= 6.0


def test_progress_can_be_turned_off_and_is_on_otherwise(capfd):
    recipe = SHORT.replace(search_epochs=1, finetune_epochs=1)
    short_fit(recipe=recipe)
    assert capfd.readouterr() == ("", "")
    csq.fit(conv_net(), few_digits(), recipe)
    out, err = capfd.readouterr()
    assert out == "" and "finetune" in err and "hard=" in err


def test_without_recalibration_the_statistics_are_those_of_the_soft_weights():
    soft = short_fit(recipe=SHORT.replace(recalibration_batches=0))
    fresh = short_fit()
    assert soft.history["loss"].tolist() == fresh.history["loss"].tolist()  # training is the same
    assert not torch.equal(soft.model[1].running_mean, fresh.model[1].running_mean)
    assert torch.equal(soft.model[0].weight, fresh.model[0].weight)


def test_a_hard_models_statistics_are_those_of_augmented_images():
    data = few_digits(augment=lambda x, generator: x + 5)
    model = short_fit(data=data, recipe=SHORT.replace(recalibration_batches=1)).model
    x = torch.nn.functional.conv2d(data.train[0] + 5, model[0].weight, model[0].bias, padding=1)
    assert torch.allclose(model[1].running_mean, x.mean((0, 2, 3)), atol=1e-4)


def test_activation_bits_reach_the_model():
    from csq_mini.activations import activation_bits

    result = short_fit(recipe=SHORT.replace(activation_bits=4))
    assert set(activation_bits(result.model).values()) == {4}


# What fit refuses


@pytest.mark.parametrize("recipe, message", [
    ({"target": 0.5}, "0.5 cannot be reached.*between 1 and 8"), ({"target": 9}, "9 cannot be reached"),
    ({"target": 3.5, "planes": 3}, "between 1 and 3"), ({"skip": ("nothing",)}, "'nothing' matches no layer"),
    ({"floor": 9}, "floor.*9"),
])  # fmt: skip
def test_fit_refuses_before_it_makes_a_folder(recipe, message, tmp_path):
    model = conv_net()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        short_fit(model, SHORT.replace(**recipe), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists() and unchanged(model, before)


def test_fit_refuses_converted_models_and_unknown_devices(tmp_path):
    with pytest.raises(ValueError, match="converted already"):
        short_fit(converted(), run_dir=tmp_path / "run")
    with pytest.raises((ValueError, RuntimeError), match="abacus"):
        short_fit(device="abacus", run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match="tensorboard=True needs a run_dir"):
        short_fit(tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_a_model_with_too_few_outputs_is_refused_with_the_number_it_needs(tmp_path):
    few = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    with pytest.raises(ValueError, match="few digits has 10 classes, the model 7 outputs: .*num_classes=10"):
        short_fit(few, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_of_a_size_the_model_does_not_take_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"does not take inputs of few digits, float32 \[40, 1, 8, 8\] a .*: .*mat1"):
        short_fit(nn.Sequential(nn.Flatten(), nn.Linear(65, 10)), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def rows(count, classes=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 8, generator=generator), torch.randint(0, classes, (count,), generator=generator)


def normed():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


@pytest.mark.parametrize("count", [512, 513, 1025, 33])
def test_a_single_row_at_the_end_of_a_split_is_no_matter(count):
    data = csq.data.Data("rows", rows(count), rows(513), rows(65))
    assert 0 <= short_fit(normed(), data=data, recipe=SHORT.replace(recalibration_batches=9)).accuracy <= 1


@pytest.mark.parametrize("count, batch", [(64, 1), (1, 32)])
def test_a_batch_of_one_row_is_refused_before_anything_is_trained(count, batch, tmp_path):
    data = csq.data.Data("rows", rows(count), rows(9), rows(9))
    with pytest.raises(ValueError, match="does not train on .*use a larger batch_size.*more than 1 value"):
        short_fit(normed(), SHORT.replace(batch_size=batch), data, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_arrays_and_datasets_train_as_tensors_do():
    x, y = rows(64)
    pairs = torch.utils.data.TensorDataset(x, y)
    ends = [short_fit(normed(), data=csq.data.Data("rows", split, split, split)).model
            for split in ((x, y), (x.numpy(), y.numpy()), pairs)]  # fmt: skip
    assert same_state(ends[0], ends[1]) and same_state(ends[0], ends[2])


class Keeps(nn.Sequential):
    """Keeps a tensor of its graph, as a model with an auxiliary loss does."""

    def forward(self, x):
        y = super().forward(x)
        self.auxiliary = y.square().mean() if self.training else None
        return y


def test_a_model_that_keeps_a_tensor_of_its_graph_trains_to_the_end():
    data = csq.data.Data("rows", rows(64), rows(64), rows(64))
    result = short_fit(Keeps(*normed()), data=data)
    assert same_state(result.model, short_fit(normed(), data=data).model)


def test_targets_that_are_missing_are_the_losss_own_matter(tmp_path):
    x, y = torch.randn(64, 8), torch.randn(64, 1)
    y[3:40] = float("nan")
    data = csq.data.Data("gaps", (x, y), (x, y), (x, y))

    def loss(outputs, targets):
        return (outputs - targets)[~targets.isnan()].square().mean()

    result = short_fit(nn.Linear(8, 1), data=data, loss=loss, metric=lambda *both: -loss(*both))
    assert -20 < result.accuracy < 0
    with pytest.raises(ValueError, match="gaps: train has targets that are NaN or infinite: repair or remove"):
        short_fit(nn.Linear(8, 1), data=data, loss=F.mse_loss, metric=lambda *both: 0.0, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_that_the_loss_leaves_out_need_a_metric_that_does_so_too():
    x, y = rows(64)
    y[5] = -100
    data = csq.data.Data("rows", (x, y), (x, y), (x, y))
    for loss in (F.cross_entropy, nn.CrossEntropyLoss(), lambda *both: F.cross_entropy(*both)):
        with pytest.raises(ValueError, match="train has the target -100, which is no class"):
            short_fit(normed(), data=data, loss=loss)

    def metric(outputs, targets):
        return csq.accuracy(outputs[targets >= 0], targets[targets >= 0])

    assert 0 <= short_fit(normed(), data=data, metric=metric).accuracy <= 1


def test_a_run_that_diverges_says_so_and_keeps_its_last_checkpoint(tmp_path):
    factors = iter([1.0] * 8 + [float("nan")] * 99)
    recipe = SHORT.replace(checkpoint_steps=2)
    with pytest.raises(ValueError, match="the loss became nan by step 8 of the search phase"):
        short_fit(recipe=recipe, run_dir=tmp_path, loss=lambda *both: F.cross_entropy(*both) * next(factors))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    assert state["step"] == 6 and all(t.isfinite().all() for k, t in state["model"].items() if "beta" not in k)


def test_too_little_gpu_memory_says_what_to_lower(tmp_path):
    def full(outputs, targets):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(torch.OutOfMemoryError, match=r"lower batch_size \(32\) or planes \(8; .* 192 bytes.*2 GiB"):
        short_fit(loss=full, run_dir=tmp_path)
