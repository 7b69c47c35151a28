"""Batch norm: its statistics estimated again, and folded into the layers before it."""

import pytest
import torch
from conftest import same_values, snapshot, unchanged
from torch import nn

import csq_mini as csq

# Recalibration


def net_with_norms():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)
    )


def test_recalibration_gives_the_mean_of_the_batches_statistics():
    model = net_with_norms()
    data = [torch.randn(7, 1, 8, 8) for _ in range(3)]
    assert csq.recalibrate(model, data) is model
    first, second = [], []
    for x in data:
        y = model[0](x)
        first.append((y.mean((0, 2, 3)), y.var((0, 2, 3))))
        z = (y - y.mean((0, 2, 3), keepdim=True)) / (
            y.var((0, 2, 3), keepdim=True, unbiased=False) + model[1].eps
        ).sqrt()
        z = model[4](torch.relu(z))  # no dropout
        second.append((z.mean((0, 2, 3)), z.var((0, 2, 3))))
    for norm, by_hand in ((model[1], first), (model[5], second)):
        mean, var = (torch.stack(values).mean(0) for values in zip(*by_hand))
        assert torch.allclose(norm.running_mean, mean, atol=1e-5) and torch.allclose(norm.running_var, var, atol=1e-5)


@pytest.mark.parametrize("pack", [lambda x: x, lambda x: (x, 1), lambda x: [x, 1, 2]])
def test_recalibration_changes_the_statistics_alone(pack):
    model = net_with_norms()
    model.train()
    model[3].eval()
    model[1].momentum, model[5].momentum = 0.3, None
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, shape = snapshot(model)
    state = torch.get_rng_state()
    csq.recalibrate(model, map(pack, [torch.randn(5, 1, 8, 8)]))
    after, same_shape = snapshot(model)
    changed = {key for key in after if not same_values(after[key], before[key])}
    assert changed == {f"{i}.{key}" for i in "15" for key in ("running_mean", "running_var", "num_batches_tracked")}
    assert shape == same_shape and (model[1].momentum, model[5].momentum) == (0.3, None)
    assert (model[0].weight.grad == 1).all() and not torch.equal(state, torch.Generator().get_state())


def test_recalibrating_on_no_batch_is_refused_and_changes_nothing():
    model = net_with_norms()
    before = snapshot(model)
    for nothing in ([], iter(())):
        with pytest.raises(ValueError, match="no batch.*at least one"):
            csq.recalibrate(model, nothing)
    assert unchanged(model, before)


def test_a_batch_that_fails_restores_modes_and_momenta():
    model = net_with_norms().train()
    with pytest.raises(RuntimeError):
        csq.recalibrate(model, [torch.randn(5, 2, 8, 8)])
    assert all(m.training for m in model.modules()) and model[1].momentum == 0.1


def test_without_batch_norm_recalibration_does_nothing():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.BatchNorm1d(2, track_running_stats=False))
    before = snapshot(model)
    assert csq.recalibrate(model, []) is model and unchanged(model, before)


# Folding batch norm


def test_folding_keeps_the_function_and_reports_its_error():
    model = csq.pretrained("resnet20-cifar10-3bit").train()
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.fc.eval()
    folded = csq.fold_batch_norm(model, x)
    assert model.training and not model.fc.training and len(folded.layers) == 21
    with torch.no_grad():
        error = (model.eval()(x) - folded.model(x)).abs().max()
    assert float(error) == folded.max_error and folded.relative_error < 1e-4 and folded.same_argmax == 1
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.model.modules())
    assert "21 batch norms" in str(folded)
    with pytest.raises(ValueError, match="no quantized layer"):
        csq.integers(folded.model)
    assert csq.integers(model)


def test_folding_leaves_the_codes_with_a_step_a_channel():
    model = csq.pretrained("resnet20-cifar10-2bit")
    weight = csq.fold_batch_norm(model, torch.randn(2, 3, 32, 32)).model.get_submodule("layer1.0.conv1").weight
    bn, codes = model.layer1[0].bn1, csq.integers(model)["layer1.0.conv1"]
    factor = bn.weight / (bn.running_var + bn.eps).sqrt()
    wanted = codes.codes * (codes.step * factor).view(-1, 1, 1, 1)
    assert torch.allclose(weight, wanted, rtol=1e-6)


def test_folding_refuses_planes_and_nothing_to_fold():
    model = csq.models.digits_cnn()
    csq.convert(model)
    with pytest.raises(ValueError, match="planes"):
        csq.fold_batch_norm(model, torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="no batch norm"):
        csq.fold_batch_norm(nn.Sequential(nn.Linear(2, 2)), torch.rand(2, 2))
