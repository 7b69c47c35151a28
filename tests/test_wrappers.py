"""Types, memory formats, autocast, torch.compile, torch.export and data parallel: a converted model in each of them."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import conv_net, converted, same_state, same_values, shake
from torch import nn

import csq_mini as csq
from csq_mini.planes import csq_layers


def test_channels_last_keeps_the_outputs():
    model = shake(converted(conv_net(bias=True))).eval()
    csq.set_temperature(model, 5.0)
    x = torch.randn(2, 1, 8, 8)
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    assert torch.allclose(model(x.to(memory_format=torch.channels_last)), expected, atol=1e-5)
    plain = csq.harden(model)
    csq.set_temperature(model, math.inf)
    assert torch.equal(plain(x), model(x))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_changes_its_type_and_back_without_changing_its_integers(dtype, frozen):
    model = converted(nn.Linear(16, 8))
    if frozen:
        csq.Budget(model, 3.0).freeze()
    before = csq.integers(model)[""].codes
    model.to(dtype)
    assert model.weight.dtype == dtype and model(torch.randn(2, 16, dtype=dtype)).dtype == dtype
    assert torch.equal(csq.integers(model)[""].codes, before)
    assert csq.harden(model).weight.dtype == dtype
    csq.set_temperature(model, 1.0)
    assert torch.allclose(model.weight.double(), csq.harden(model).weight.double(), rtol=2e-2, atol=1e-2)
    model.to(torch.float32)
    assert torch.equal(csq.integers(model)[""].codes, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_type_converts_within_half_a_step_and_trains(dtype):
    layer = nn.Linear(50, 40).to(dtype)
    weight = layer.weight.detach().double()
    csq.convert(layer)
    exact = csq.integers(layer)[""]
    step = weight.abs().max() / 255
    assert (exact.codes.double() * exact.step - weight).abs().max() <= step / 2 * 1.001
    for _ in range(2):  # before the freeze and after it
        csq.set_temperature(layer, 1.0)
        layer(torch.randn(3, 50, dtype=dtype)).sum().backward()
        assert layer.csq.p.grad.any() and all(p.grad.dtype == dtype for p in layer.csq.parameters())
        if not layer.csq.frozen:
            csq.Budget(layer, 3.0).freeze()


@pytest.mark.parametrize("beta", [1.0, 30.0, math.inf])
@pytest.mark.parametrize("frozen", [False, True])
def test_weights_and_their_gradients_are_exact_under_autocast(beta, frozen):
    layer = shake(converted(nn.Conv2d(6, 8, 3)))
    if frozen:
        csq.Budget(layer, 3.0).freeze()
    csq.set_temperature(layer, beta)
    upstream = torch.randn(layer.csq.shape)
    parameters = list(layer.csq.parameters())
    expected = layer.weight, *torch.autograd.grad(layer.weight, parameters, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        weight = layer.weight
        assert layer(torch.randn(1, 6, 5, 5)).dtype == torch.bfloat16  # so that autocast is at work
        inside = torch.autograd.grad(weight, parameters, upstream)
    assert weight.dtype == torch.float32
    assert all(same_values(a, b) for a, b in zip((weight, *inside), expected))


def test_training_under_autocast_learns():
    model = converted(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
    x, y = torch.randn(64, 8), torch.arange(64) % 4
    optimizer = torch.optim.SGD(csq.parameter_groups(model, 0.1), momentum=0.9)
    csq.set_temperature(model, 1.0)
    losses = []
    for _ in range(60):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("frozen", [False, True])
def test_compiles_whole_and_once_for_every_finite_temperature(frozen):
    model = converted(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4)))
    if frozen:
        csq.Budget(model, 3.0).freeze()
    twin = copy.deepcopy(shake(model))
    fast = torch.compile(model, fullgraph=True)
    x = torch.randn(5, 1, 8, 8)
    for i, beta in enumerate((1.0, 1.7, 33.0, 200.0)):
        csq.set_temperature(fast, beta)
        csq.set_temperature(twin, beta)
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            out = fast(x)
        for net, y in ((model, out), (twin, twin(x))):
            net.zero_grad()
            y.square().sum().backward()
        assert torch.allclose(out, twin(x), rtol=1e-4, atol=1e-4)
        assert all(torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-3 * float(b.grad.abs().max()))
                   for a, b in zip(model.parameters(), twin.parameters()))  # fmt: skip
    plain = csq.harden(fast)
    assert type(plain) is nn.Sequential and len(csq_layers(fast)) == 2
    assert csq.Budget(fast, 4.0).bits() == csq.Budget(twin, 4.0).bits()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("beta", [2.0, math.inf])
def test_exports_to_a_graph_with_the_same_outputs(beta, frozen):
    model = shake(converted(conv_net(bias=True))).eval()
    if frozen:
        csq.Budget(model, 3.0).freeze()
    csq.set_temperature(model, beta)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        assert torch.allclose(program.module()(x), model(x), atol=1e-6)
    hard = torch.export.export(csq.harden(model), (x,))
    assert torch.equal(hard.module()(x), csq.harden(model)(x))


def ddp_worker(rank, world, file, out):
    """One rank of a data-parallel search, freeze and finetune; or the whole of it for world 1."""
    import os

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.manual_seed(0)
    model = converted(nn.Sequential(nn.Conv2d(1, 3, 3), nn.GELU(), nn.Flatten(), nn.Linear(108, 4)))
    wrapped = model
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
        wrapped = nn.parallel.DistributedDataParallel(model)
    budget = csq.Budget(wrapped, 3.0, strength=4.0)
    generator = torch.Generator().manual_seed(3)
    for phase in ("search", "finetune"):
        if phase == "finetune":
            budget.freeze()
            wrapped = nn.parallel.DistributedDataParallel(model) if world > 1 else model
        optimizer = torch.optim.SGD(csq.parameter_groups(wrapped, 0.05), momentum=0.9)
        for step in range(4):
            csq.set_temperature(wrapped, csq.temperature(step / 4))
            x, y = torch.randn(8, 1, 8, 8, generator=generator), torch.randint(4, (8,), generator=generator)
            part = slice(rank * 8 // world, (rank + 1) * 8 // world)
            loss = F.cross_entropy(wrapped(x[part]), y[part]) + budget.penalty(step / 4)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    plain = csq.harden(wrapped)
    state = {
        "state": model.state_dict(),
        "bits": budget.bits(),
        "plain": plain.state_dict(),
        "kind": type(plain).__name__,
    }
    torch.save(state, f"{out}{world}{rank}")
    if world > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_data_parallel_processes_go_through_all_phases_like_one(tmp_path, processes):
    ranks = [processes.Process(target=ddp_worker, args=(r, 2, tmp_path / "meet", tmp_path / "out")) for r in range(2)]
    for process in ranks:
        process.start()
    ddp_worker(0, 1, None, tmp_path / "out")
    for process in ranks:
        process.join(90)
    assert [process.exitcode for process in ranks] == [0, 0]
    first, second, alone = (torch.load(tmp_path / f"out{k}") for k in ("20", "21", "10"))
    assert same_state(first["state"], second["state"]) and same_state(first["plain"], second["plain"])
    assert first["bits"] == alone["bits"] <= 3.0 and first["kind"] == "Sequential"
    for key, value in alone["state"].items():
        assert torch.allclose(first["state"][key], value, rtol=1e-3, atol=1e-3), key
