"""What the large steps need in passing: at most 48 bytes a weight of the largest layer, in float32 and in bfloat16.

``torch.profiler`` counts what torch allocates, inside its operators too; ``tracemalloc`` sees nothing of it.
"""

import gc

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import csq_mini as csq

SIZE = 1000, 1024
WEIGHTS = SIZE[0] * SIZE[1]


def bytes_in_passing(call):
    """The most memory at any time beyond what is there before ``call`` or after it, in bytes a weight."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        kept = call()
    events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    assert events, kept
    return (most - max(now, 0)) / WEIGHTS


def test_the_measure_sees_what_is_freed_and_what_stays():
    x = torch.ones(WEIGHTS)
    assert bytes_in_passing(lambda: x + 1) == pytest.approx(0, abs=0.01)
    assert bytes_in_passing(lambda: ((x + 1) * 2).sum()) == pytest.approx(8, abs=0.01)
    assert bytes_in_passing(lambda: (x + 1).double() * 2) == pytest.approx(8, abs=0.01)
    assert bytes_in_passing(lambda: x.short().unique()) > 4  # inside an operator


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def layer(request):
    return nn.Linear(*SIZE, bias=False).to(request.param)


def test_convert_takes_little_in_passing(layer):
    assert bytes_in_passing(lambda: csq.convert(layer)) <= 48


@pytest.mark.parametrize("target", [1.0, 8.0])
def test_freeze_takes_little_in_passing(layer, target):
    bytes_in_passing(lambda: csq.convert(layer))  # the profiler sees memory freed that it has seen allocated
    csq.set_temperature(layer, 2.0)
    budget = csq.Budget(layer, target)
    assert bytes_in_passing(budget.freeze) <= 48


@pytest.mark.parametrize("frozen", [False, True])
def test_harden_report_and_integers_take_little_in_passing(layer, frozen):
    csq.convert(layer)
    if frozen:
        csq.Budget(layer, 3.0).freeze()
    csq.set_temperature(layer, 2.0)
    for call in (csq.harden, csq.report, csq.integers):
        assert bytes_in_passing(lambda call=call: call(layer)) <= 48
    plain = csq.harden(layer)
    for call in (csq.report, csq.integers):
        assert bytes_in_passing(lambda call=call: call(plain)) <= 48
