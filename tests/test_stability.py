"""Stability: falls, gaps, and the signal in gradients, against what they are by definition."""

import pandas
import pytest
import torch
from conftest import conv_net, converted, few_digits, layers_of, snapshot, unchanged
from torch import nn

import csq_mini as csq
from csq_mini.experiments.baselines.quantizers import DoReFa, attach
from csq_mini.experiments.stability import signal_to_noise, soft_to_hard, worst_fall

HISTORY = pandas.DataFrame({
    "phase": ["search"] * 4 + ["finetune"] * 4,
    "soft": [0.9, 0.1, 0.5, 0.8, 0.7, 0.6, 0.9, 0.85], "hard": [0.1, 0.1, 0.2, 0.7, 0.6, 0.6, 0.9, 0.8],
})  # fmt: skip


def test_a_fall_is_counted_from_the_best_so_far_once_the_start_is_over():
    assert worst_fall(HISTORY) == pytest.approx(0.2)  # 0.8 to 0.6
    assert worst_fall(HISTORY, after=0.0) == pytest.approx(0.8)
    assert worst_fall(HISTORY, "hard") == pytest.approx(0.1)
    assert worst_fall(HISTORY, after=1.0) == 0.0 and worst_fall(HISTORY.iloc[2:4]) == 0.0
    with pytest.raises(ValueError, match="after must be .*1.5"):
        worst_fall(HISTORY, after=1.5)


def test_the_gap_is_that_of_the_last_epoch_of_each_phase():
    assert soft_to_hard(HISTORY) == {"search": pytest.approx(0.1), "finetune": pytest.approx(0.05)}


def batches_of(count):
    data = few_digits()
    return [data.training_batch(16, 0, step) for step in range(count)]


@pytest.mark.parametrize("kind", ["planes", "straight-through"])
def test_the_signal_is_that_of_all_gradients_at_once(kind):
    torch.manual_seed(0)
    model, batches = conv_net(), batches_of(5)
    if kind == "planes":
        csq.convert(model)
        csq.set_temperature(model, 3.0)
        parameters = [p for planes in layers_of(model).values() for p in (planes.p, planes.n)]
    else:
        attach(model, DoReFa, dict.fromkeys(["0", "3", "6", "11"], 2))
        parameters = [p for name, p in model.named_parameters() if "original" in name]
    state = snapshot(model)
    found = signal_to_noise(model, batches)
    assert unchanged(model, state)
    rows = []
    for x, y in batches:
        loss = nn.functional.cross_entropy(model.train()(x), y)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double())
    gradients = torch.stack(rows)
    mean, noise = gradients.mean(0).square().sum(), gradients.var(0).sum()
    assert len(parameters) == (8 if kind == "planes" else 4)
    assert found == pytest.approx(float(((mean - noise / 5) / noise).clamp(min=0).sqrt()), rel=1e-3)


def test_equal_batches_have_no_noise_and_opposite_ones_no_signal():
    model = converted(nn.Linear(4, 1, bias=False))
    csq.set_temperature(model, 1.0)
    x, y = torch.ones(2, 4), torch.zeros(2, 1)
    assert signal_to_noise(model, [(x, y)] * 3, lambda out, y: out.sum()) > 1e3
    signs = iter((1, -1, 1, -1))
    assert signal_to_noise(model, [(x, y)] * 4, lambda out, y: next(signs) * out.sum()) == 0.0


@pytest.mark.parametrize(("model", "count", "said"), [
    (nn.Linear(64, 10), 3, "Linear has no quantized layer that trains"), (None, 1, "1 batches have no spread"),
])  # fmt: skip
def test_what_has_no_signal_to_measure_is_refused(model, count, said):
    with pytest.raises(ValueError, match=said):
        signal_to_noise(converted() if model is None else model, batches_of(count))
    assert signal_to_noise(converted(), batches_of(2)) == 0.0  # hard gates have no slope
