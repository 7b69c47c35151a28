"""Batch norm: its statistics estimated again, and folded into the layers before it."""

import pytest
import torch
from conftest import hardened, same_state, same_values, snapshot, unchanged
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


def used_norm(training):
    """A model whose batch norm has seen data, in a mode, with a momentum of its own."""
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16, momentum=0.3), nn.Dropout(0.5))
    model(torch.randn(64, 8) * 3 + 5)
    return model.train(training)


def interrupted():
    yield torch.randn(16, 8)
    raise KeyboardInterrupt


NAN, LARGE = torch.full((4, 8), float("nan")), torch.randn(4, 8) * 1e30


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batches, error, message", [
    (lambda: [torch.randn(1, 8)], ValueError, "more than 1 value.*more than one example"),
    (lambda: [torch.randn(16, 8), {"x": torch.randn(4, 8)}], ValueError, "got dict: pass tensors"),
    (lambda: [torch.randn(16, 8), NAN], ValueError, "NaN or infinity: repair"),
    (lambda: [LARGE], ValueError, "new statistics of batch norm 1 are NaN or infinite"),
    (lambda: [torch.randn(16, 8), torch.randn(4, 7)], RuntimeError, "mat1 and mat2"),
    (lambda: [torch.randn(16, 8), torch.tensor(1.0)], ValueError, "a batch to recalibrate on"),
    (interrupted, KeyboardInterrupt, None), (lambda: [], ValueError, "no batch.*at least one"),
    (lambda: torch.randn(16, 8), ValueError, r"got Tensor: pass \[inputs\]"),
    (lambda: None, ValueError, "got NoneType"),
])  # fmt: skip
def test_a_recalibration_that_fails_leaves_all_as_it_was(training, batches, error, message):
    model = used_norm(training)
    before, x = snapshot(model), torch.randn(4, 8)
    outputs = model[:2].eval()(x), model.train(training)
    with pytest.raises(error, match=message):
        csq.recalibrate(model, batches())
    assert unchanged(model, before) and model[1].momentum == 0.3 and torch.equal(model[:2].eval()(x), outputs[0])


def test_a_single_example_after_larger_batches_is_left_out():
    x, model, other = torch.randn(33, 8), used_norm(True), used_norm(True)
    other.load_state_dict(model.state_dict())
    csq.recalibrate(model, x.split(16))
    csq.recalibrate(other, x[:32].split(16))
    assert same_state(model, other)
    images = net_with_norms()
    csq.recalibrate(images, torch.randn(3, 1, 8, 8).split(1))  # each has many values a channel
    assert int(images[1].num_batches_tracked) == 3


def test_batch_norm_that_evaluation_does_not_reach_keeps_its_statistics():
    model = Net(lambda m, x: m.a(x) + m.b(x) if m.training else m.a(x), a=norm(), b=norm(seed=1)).train()
    a, b = model.a.running_mean.clone(), model.b.running_mean.clone()
    csq.recalibrate(model, [torch.randn(8, 4, 5, 5)])
    assert not torch.equal(model.a.running_mean, a) and torch.equal(model.b.running_mean, b)


def test_batch_norm_in_evaluation_mode_is_frozen_unless_the_whole_model_is():
    model, x = nn.Sequential(nn.BatchNorm1d(8), nn.BatchNorm1d(8)), torch.randn(16, 8) + 3
    model[0].eval()
    csq.recalibrate(model, [x])
    assert not model[0].running_mean.any() and model[1].running_mean.all() and model.training
    csq.recalibrate(model.eval(), [x])
    assert model[0].running_mean.all() and not model.training

    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[0].eval()
            return self

    model = Frozen(nn.BatchNorm1d(8), nn.BatchNorm1d(8))
    csq.recalibrate(model, [x])
    assert not model[0].running_mean.any() and model[1].running_mean.all()


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


class Net(nn.Module):
    """Named modules, and a forward of them."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.compute = forward

    def forward(self, x):
        return self.compute(self, x)


class Pair(Net):
    def forward(self, x, z):
        return self.compute(self, x, z)


def norm(width=4, kind=nn.BatchNorm2d, seed=0):
    """A batch norm with statistics and weights of its own."""
    generator, made = torch.Generator().manual_seed(seed), kind(width)
    for t in (made.running_mean, made.running_var, *([made.weight, made.bias] if made.affine else [])):
        t.data = torch.rand(width, generator=generator) + 0.5
    return made


def conv():
    return nn.Conv2d(4, 4, 1)


SHARED = {
    "called twice": Net(lambda m, x: m.b(m.c(x)) + m.d(m.c(torch.relu(x))), c=conv(), b=norm(), d=norm(seed=1)),
    "one path": Net(lambda m, x: m.b(m.c(x)) + m.c(torch.relu(x)), c=conv(), b=norm()),
    "output used": Net(lambda m, x: m.b(y := m.c(x)) + y, c=conv(), b=norm()),
    "weight used": Net(lambda m, x: m.b(m.c(x)) + m.c.weight.sum(), c=conv(), b=norm()),
    "no layer": Net(lambda m, x: m.b(m.c(x) + 1), c=conv(), b=norm()),
    "groups": nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2), norm()),
    "no statistics": nn.Sequential(conv(), nn.BatchNorm2d(4, track_running_stats=False)),
}
SHARED["two names"] = SHARED["called twice"]
SHARED["two names"].e = SHARED["two names"].c


@pytest.mark.parametrize("case", SHARED)
def test_a_batch_norm_is_not_folded_into_what_others_use(case):
    x, alone = torch.randn(8, 4, 5, 5), nn.Sequential(conv(), norm(seed=2))
    with pytest.raises(ValueError, match="no batch norm right after .*there is: [bd1]"):
        csq.fold_batch_norm(SHARED[case], x)
    both = nn.Sequential(alone, SHARED[case]).eval()
    folded = csq.fold_batch_norm(both, x)  # the other is folded, this one left
    assert folded.layers == ("0.1",) and folded.kept and all(f"{name}" in str(folded) for name in folded.kept)
    assert torch.allclose(both(x), folded.model(x), atol=1e-5)


@pytest.mark.parametrize("model, shape", [
    (nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2), norm()), (2, 3, 5, 5)),
    (nn.Sequential(nn.ConvTranspose1d(3, 4, 3, bias=False), norm(kind=nn.BatchNorm1d)), (2, 3, 5)),
    (nn.Sequential(nn.Linear(3, 4), norm(kind=nn.BatchNorm1d)), (2, 3)),
    (nn.Sequential(conv(), norm(seed=1), norm(seed=2), nn.ReLU()), (2, 4, 5, 5)),  # one norm right after the other
    (nn.Sequential(nn.Linear(3, 4), norm(kind=lambda n: nn.BatchNorm1d(n, affine=False))), (2, 3)),
    (Net(lambda m, x: (y := m.b(m.c(x)), {"mean": m.h(y.mean((2, 3)))}), c=conv(), b=norm(), h=nn.Linear(4, 2)),
     (2, 4, 5, 5)),
])  # fmt: skip
def test_other_layers_and_several_outputs_are_folded(model, shape):
    exact, x = hardened(model), torch.randn(shape)
    folded = csq.fold_batch_norm(exact, x)
    first = [y[0] if isinstance(y, tuple) else y for y in (exact(x), folded.model(x))]
    assert torch.allclose(*first, atol=1e-5) and folded.relative_error < 1e-5
    assert folded.layers and not folded.kept


def test_a_folded_model_is_never_a_wrong_model():
    x = torch.randn(2, 4, 5, 5)
    rows = nn.Sequential(nn.Linear(4, 4), norm(kind=nn.BatchNorm1d))  # on [batch, 4, 4] channels are no features
    with pytest.raises(ValueError, match="without batch norm 1 outputs move by .* no mere rounding"):
        csq.fold_batch_norm(rows, torch.randn(8, 4, 4))
    with pytest.raises(ValueError, match="cannot trace Net"):
        csq.fold_batch_norm(Net(lambda m, x: m.b(m.c(x)) if x.sum() > 0 else x, c=conv(), b=norm()), x)
    two = Pair(lambda m, x, z: m.b(m.c(x)) + z, c=conv(), b=norm())
    assert csq.fold_batch_norm(two, (x, x)).layers == ("b",)
