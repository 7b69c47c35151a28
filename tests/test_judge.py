"""How a model is judged."""

import pytest
import torch
from conftest import few_digits, mlp

import csq_mini as csq


def test_accuracy_is_the_share_of_right_rows():
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert csq.accuracy(outputs, torch.tensor([1, 0, 0, 0])) == 0.75


def test_evaluate_is_the_mean_over_all_images():
    data, model = few_digits(), mlp().eval()
    x, y = data.test
    assert csq.evaluate(model, data) == pytest.approx(float(csq.accuracy(model(x), y)), abs=1e-7)
    assert csq.evaluate(model, data, "valid", lambda outputs, targets: 0.25) == 0.25
    with pytest.raises(ValueError, match="unknown split 'tset'; did you mean test"):
        csq.evaluate(model, data, "tset")


def test_a_smaller_last_batch_counts_by_its_images():
    from csq_mini.train.judge import JUDGE_BATCH

    y = torch.zeros(JUDGE_BATCH + 8, dtype=torch.long)
    y[JUDGE_BATCH:] = 1
    split = torch.zeros(len(y), 1, 8, 8), y
    data = csq.data.Data("two batches", split, split, split)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    model[1].bias.data.copy_(torch.tensor([1.0, 0.0]))  # always says 0
    assert csq.evaluate(model, data) == pytest.approx(JUDGE_BATCH / (JUDGE_BATCH + 8))
    assert not model.training
