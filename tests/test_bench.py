import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import converted, layers_of
from torch import nn

import bench
import csq_mini as csq


def test_the_library_saves_nothing_and_a_plain_layer_would():
    layers = list(layers_of(converted()).values())
    layers[0].set_beta(2.0)
    assert bench.saved_bytes(layers) == 0

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.randn(8, 100))

        def forward(self):
            return torch.sigmoid(self.p).sum(0)

    assert bench.saved_bytes([Plain()]) == 8 * 100 * 4


def test_state_of_a_resnet20_step_meets_its_bounds():
    figures = bench.memory()
    assert figures["search_bound_bytes_per_weight"] == 192 == 8 * 2 * 3 * 4
    assert figures["finetune_bound_bytes_per_weight"] == pytest.approx(192 * 2 / 8, abs=0.1)  # at two of eight planes
    for phase in ("search", "finetune"):
        bound = figures[f"{phase}_bound_bytes_per_weight"]
        assert bound <= figures[f"{phase}_bytes_per_weight"] < bound + 0.1  # masks and scales on top
        assert figures[f"{phase}_saved_beyond_parameters_bytes"] == 0


@pytest.mark.parametrize("phase", ["float", "search", "finetune"])
def test_a_benchmark_step_trains(phase):
    trainer = bench.trainer(phase, batch=2)
    step = bench.one_step(trainer)
    step()
    before = {k: v.clone() for k, v in trainer.model.named_parameters()}
    step()
    assert any(not torch.equal(before[k], v) for k, v in trainer.model.named_parameters())
    assert bool(trainer.budget) == (phase != "float") and trainer.phase == phase
    assert not trainer.budget or trainer.budget.frozen == (phase == "finetune")


def test_ratios_are_medians_of_interleaved_pairs():
    figures = bench.steps(pairs=3, batch=2)
    assert figures["pairs"] == 3 and figures["float_step_s"] > 0
    for name in ("search", "finetune", "bfloat16_float", "bfloat16_search"):
        low, high = figures[f"{name}_ratio_quartiles"]
        assert 0 < low <= figures[f"{name}_ratio"] <= high


def test_where_names_hardware_and_versions():
    facts = bench.where()
    assert facts["torch"] == torch.__version__ and facts["csq_mini"] == csq.__version__ and facts["cpu"]
    json.dumps(facts)


def test_digits_runs_are_trained_alike(monkeypatch):
    seen = {}

    def fit(model, data, recipe, progress):
        seen[recipe.target, recipe.search_epochs] = recipe
        return csq.Result(model, 0.5, None, None, recipe, 1.0)

    monkeypatch.setattr(bench, "fit", fit)
    rows = [
        bench.digits_run((kind, target, 1, 2)) for kind, target in (("csq", 2.0), ("uniform", 2.0), ("float", None))
    ]
    epochs = {r.search_epochs + r.finetune_epochs for r in seen.values()}
    assert len(seen) == 3 and len(epochs) == 1 and {r.seed for r in seen.values()} == {2}
    assert all(row["accuracy"] == 0.5 and row["fold"] == 1 for row in rows)


def test_main_writes_json_for_the_named_benchmarks(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "steps", lambda: {"ratio_median": 1.0})
    monkeypatch.setattr(sys, "argv", ["bench", "steps", "--out", str(tmp_path / "results")])
    bench.main()
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["bench_steps.json"]
    content = json.loads((tmp_path / "results/bench_steps.json").read_text())
    assert content["ratio_median"] == 1.0 and content["where"]["torch"]
    monkeypatch.setattr(sys, "argv", ["bench", "nothing"])
    with pytest.raises(SystemExit):
        bench.main()


def test_the_readme_shows_what_the_results_files_say():
    root = Path(__file__).parents[1]
    shown = (root / "README.md").read_text().partition("<!-- bench: begin -->")[2].partition("<!-- bench: end -->")[0]
    assert shown.strip() == bench.table(root / "book" / "results")


@pytest.mark.parametrize("method", ["csq", "free-masks", "ste", "bsq"])
def test_a_training_is_watched_to_its_end_and_judged_as_the_method_ends(method, monkeypatch):
    short = csq.Recipe(search_epochs=2, finetune_epochs=1, batch_size=128)
    monkeypatch.setattr(bench.recipes, "get", lambda name, **changes: short.replace(**changes))
    row = bench.stability_run((method, 1))
    assert (row["method"], row["seed"]) == (method, 1) and len(row["signal_to_noise"]) == 1
    phases = {"search", "finetune"} if method in ("csq", "free-masks") else {"float"}
    assert set(row["soft_minus_hard_at_the_end"]) == phases
    assert 0 <= row["worst_fall"] <= 1 and 0 <= row["worst_fall_hard"] <= 1 and 0 < row["accuracy"] < 1
    assert row["bits"] > 2 if method == "bsq" else row["bits"] <= 2  # BSQ lands where it lands
