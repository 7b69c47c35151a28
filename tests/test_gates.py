import math

import pytest
import torch
from conftest import converted
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import csq_mini as csq
from csq_mini.gates import gate

LOGITS = torch.tensor([-3.0, -1e-30, -0.0, 0.0, 1e-30, 0.5, 4.0])


def test_hard_gate_is_open_above_zero_only():
    assert torch.equal(gate(LOGITS, math.inf), torch.tensor([0.0, 0, 0, 0, 1, 1, 1]))
    assert gate(LOGITS.double(), math.inf).dtype == torch.float64


@pytest.mark.parametrize("beta", [0.1, 1.0, 17.5, 200.0])
def test_soft_gate_is_the_sigmoid_of_temperature_times_logit(beta):
    expected = 1 / (1 + torch.exp(-beta * LOGITS.double()))
    assert torch.allclose(gate(LOGITS.double(), beta), expected, rtol=1e-12, atol=1.01 * torch.finfo(torch.float64).eps)
    assert torch.equal(gate(LOGITS, beta), gate(LOGITS, torch.tensor(beta)))


def test_a_finite_temperature_approaches_the_hard_gate_away_from_zero():
    x = LOGITS[LOGITS.abs() > 0.1]
    assert torch.allclose(gate(x, 200.0), gate(x, math.inf), rtol=0, atol=1.01 * torch.finfo(x.dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [1.0, 60.0, 170.0, 1e6])
def test_a_soft_gate_and_its_slope_are_never_denormal(beta, dtype):
    x = torch.linspace(-3, 3, 1001, dtype=dtype).requires_grad_()
    f = gate(x, beta)
    smallest = torch.finfo(dtype).eps / 2
    assert f.min() > smallest and (1 - f).min() > smallest and (f - f * f).min() > smallest


def test_temperature_ends_are_exact_and_halfway_is_the_geometric_mean():
    assert (csq.temperature(0), csq.temperature(1)) == (1.0, 200.0)
    assert csq.temperature(0.5) == pytest.approx(math.sqrt(200), rel=1e-12)
    assert csq.temperature(0.25, 2.0, 32.0) == pytest.approx(4.0, rel=1e-12)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1e-3, 1e3), st.floats(1, 1e3))
def test_temperature_grows_by_the_same_factor_in_the_same_time(t, u, start, factor):
    low, high = sorted((t, u))
    ratio = csq.temperature(high, start, start * factor) / csq.temperature(low, start, start * factor)
    assert ratio == pytest.approx(factor ** (high - low), rel=1e-9)


@pytest.mark.parametrize("t", [-0.01, 1.01, math.nan, math.inf])
def test_progress_outside_zero_to_one_is_refused(t):
    with pytest.raises(ValueError, match=f"progress t must be .* from 0 to 1, got {t}: pass step / total_steps"):
        csq.temperature(t)


@pytest.mark.parametrize("ends", [(0, 200), (1, -1), (math.nan, 200), (1, math.inf), (1, math.nan)])
def test_temperature_ends_must_be_finite_and_above_zero(ends):
    with pytest.raises(ValueError, match="above 0|finite"):
        csq.temperature(0.5, *ends)


@pytest.mark.parametrize("beta", [0, 0.0, -1.0, math.nan, -math.inf, None, "warm"])
def test_a_bad_temperature_is_refused_and_the_old_one_stays(beta):
    model = converted()
    csq.set_temperature(model, 3.0)
    before = model.state_dict()["0.csq.beta"].clone()
    with pytest.raises(ValueError, match=f"(?s){beta!r}.*math.inf"):
        csq.set_temperature(model, beta)
    assert torch.equal(model.state_dict()["0.csq.beta"], before)


def test_a_model_never_converted_has_no_temperature():
    with pytest.raises(ValueError, match="Linear.*convert"):
        csq.set_temperature(torch.nn.Linear(2, 2), 1.0)


@pytest.mark.parametrize("beta", [-1, 0, -1.0, math.nan, "hot", None, 1e9])
def test_a_gate_refuses_what_is_no_temperature(beta):
    with pytest.raises(ValueError, match="a temperature must be a number above 0"):
        csq.gate(torch.zeros(2), beta)


@pytest.mark.parametrize("dtype, beta, largest", [(torch.float16, 1e5, "65504"), (torch.float16, 65505.0, "65504")])
def test_a_temperature_that_the_type_cannot_hold_is_refused(dtype, beta, largest):
    model = converted(nn.Sequential(nn.Linear(8, 4))).to(dtype)
    csq.set_temperature(model, 65504.0)
    with pytest.raises(ValueError, match=f"more than torch.float16 holds: use at most {largest}"):
        csq.set_temperature(model, beta)
    with torch.no_grad():
        model[0].csq.p[0, 0] = 0
    assert model[0].weight.isfinite().all() and float(model[0].csq.beta) == 65504.0
