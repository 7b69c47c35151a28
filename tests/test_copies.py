"""Copies, files and state_dicts of converted models: the same model, in every phase of its life."""

import copy
import io
import math
import pickle
import subprocess
import sys

import pytest
import torch
from conftest import TOKENS, Net, conv_net, converted, rounded, same_state, shake
from torch import nn

import csq_mini as csq


def somewhere(kind):
    """A converted model at some point of its life."""
    model = shake(converted(Net()))
    if kind == "frozen":
        csq.Budget(model, 2.5).freeze()
        shake(model)
    csq.set_temperature(model, math.inf if kind == "hard" else 4.25)
    return model.eval()


def through_file(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


def through_state(model):
    fresh = converted(Net())
    budget = csq.Budget(fresh, 2.5)
    if csq.Budget(model, 4.0).frozen:
        budget.freeze(like=model.state_dict())
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": through_file,
          "state_dict": through_state}  # fmt: skip


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", ["search", "frozen", "hard"])
def test_a_copy_is_the_model_with_masks_and_temperature(kind, way):
    model = somewhere(kind)
    twin = COPIES[way](model)
    assert same_state(twin, model) and torch.equal(twin(TOKENS), model(TOKENS))
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    assert twin.again is twin.blocks["b"]
    assert csq.Budget(twin, 4.0).frozen == (kind == "frozen")
    with torch.no_grad():
        twin.embed.csq.p.neg_()
    assert not torch.equal(twin(TOKENS), model(TOKENS))  # it shares no memory


@pytest.mark.parametrize("frozen", [False, True])
def test_a_saved_model_opens_in_a_fresh_process(tmp_path, frozen):
    model = shake(converted(conv_net(bias=True))).eval()
    if frozen:
        csq.Budget(model, 3.0).freeze()
    csq.set_temperature(model, 7.5)
    x = torch.randn(2, 1, 8, 8)
    torch.save({"model": model, "hard": csq.harden(model), "x": x, "y": model(x).detach()}, tmp_path / "all.pt")
    code = (
        "import sys, torch; torch.set_num_threads(1); a = torch.load(sys.argv[1], weights_only=False)\n"
        "assert torch.equal(a['model'](a['x']), a['y'])\n"
        "import csq_mini as csq; assert torch.equal(csq.harden(a['model'])(a['x']), a['hard'](a['x']))\n"
        "csq.integers(a['hard']); print(csq.report(a['model']).total.paper_bits)"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "all.pt"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == csq.report(model).total.paper_bits


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("beta", [1.0, math.inf])
def test_a_float_state_dict_loads_strictly_into_a_converted_model(beta, assign):
    source, model = Net(), shake(converted(Net()))
    csq.set_temperature(model, beta)
    state = source.state_dict()
    keys = list(state)
    assert model.load_state_dict(state, assign=assign) == ([], [])
    assert list(state) == keys
    reference = rounded(source)
    reference.again = reference.blocks["b"]
    assert float(model.embed.csq.beta) == beta
    csq.set_temperature(model, math.inf)
    assert torch.equal(model.eval()(TOKENS), reference.eval()(TOKENS))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_float_state_dict_goes_onto_the_planes_a_frozen_layer_keeps(count):
    model = shake(converted(nn.Linear(20, 10)))
    csq.Budget(model, count).freeze()
    before, source = model.csq.open.clone(), nn.Linear(20, 10)
    assert model.load_state_dict(source.state_dict()) == ([], [])
    assert torch.equal(model.csq.open, before) and model.csq.frozen and csq.Budget(model, count).frozen
    scale = source.weight.abs().max()
    assert (model.weight - source.weight).abs().max() <= scale / (2**count - 1) / 2 * 1.001
    assert torch.equal(model.bias, source.bias)


def test_a_float_state_dict_leaves_a_layer_without_planes_at_zero():
    model = converted(nn.Linear(4, 3))
    csq.Budget(model, 0, floor=0).freeze()
    model.load_state_dict(nn.Linear(4, 3).state_dict())
    assert not model.weight.any() and csq.integers(model)


@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "extra"])
def test_a_float_state_dict_that_does_not_fit_is_refused(damage):
    model = converted(nn.Sequential(nn.Linear(4, 3)))
    state = {"0.weight": torch.randn(3, 4), "0.bias": torch.randn(3)}
    if damage == "missing":
        del state["0.weight"]
    elif damage == "extra":
        state["1.weight"] = torch.zeros(1)
    else:
        state["0.weight"] = torch.randn(4, 4) if damage == "shape" else torch.full((3, 4), math.nan)
    planes = {k: v.clone() for k, v in model.state_dict().items() if k != "0.bias"}
    with pytest.raises(
        RuntimeError, match={"missing": r"0\.csq\.p", "shape": r"\(4, 4\)", "nan": "NaN", "extra": "1.weight"}[damage]
    ):
        model.load_state_dict(state)
    if damage != "extra":  # torch itself loads what fits before it complains of what does not
        assert all(torch.equal(model.state_dict()[k], v) for k, v in planes.items())
