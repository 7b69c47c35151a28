"""Labs: what their controls do, without a front end; test_labs_in_a_kernel.py has one."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import csq_mini as csq

pytestmark = pytest.mark.skipif(
    not (find_spec("ipywidgets") and find_spec("seaborn")), reason="needs the extra notebook"
)

ROOT = Path(__file__).resolve().parents[2]
VIEW = "application/vnd.jupyter.widget-view+json"
QUICK = csq.recipes.get("digits", search_epochs=2, finetune_epochs=1)
PATIENCE = 120  # seconds, on a machine that does other things too


@pytest.fixture(scope="module")
def labs():
    from csq_book import labs

    return labs


def until(condition, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "csq-lab"]


@pytest.fixture(scope="module")
def digits():
    return csq.data.digits()


@pytest.fixture
def lab(labs, digits):
    """A short budget lab whose widgets are there; afterwards no thread is left."""
    made = labs.budget_lab(data=digits, recipe=QUICK)
    assert made.widgets["box"].children
    yield made
    made.pause()
    assert made.wait(PATIENCE) and until(lambda: not threads())


def figure(lab):
    return lab.widgets["figure"].value


def alert(lab):
    return lab.widgets["error"].value


def steps(lab):
    return lab.trainer.steps_done


def precisions_of(lab):
    return [float(planes.q.detach()) for planes in lab.budget.layers.values()]


# The temperature


def test_temperature_lab_computes_gate_and_slope_anew(labs):
    lab = labs.temperature_lab()
    seen = {figure(lab)}
    for beta, x in ((1.0, 0.0), (20.0, 0.5), (200.0, -1.0)):
        lab.widgets["beta"].value, lab.widgets["x"].value = beta, x
        opening, slope = (float(part) for part in lab.slopes(torch.tensor([x])))
        exact = 1 / (1 + math.exp(-beta * x))
        assert opening == pytest.approx(exact, abs=1e-6)
        assert slope == pytest.approx(beta * exact * (1 - exact), rel=1e-3, abs=1e-4)
        assert f"\u03b2 = {beta:.1f}" in figure(lab)
        seen.add(figure(lab))
    assert len(seen) == 4
    lab.widgets["hard"].value = True
    assert "no gradient passes" in figure(lab) and figure(lab) not in seen


def test_every_control_has_a_label(labs):
    layer = nn.Sequential(nn.Linear(2, 2))
    csq.convert(layer)
    for lab in (labs.temperature_lab(), labs.scheme_explorer(layer), labs.budget_lab(recipe=QUICK)):
        assert set(lab.labels) | {"box", "figure", "error"} == set(lab.widgets)
        for name, label in lab.labels.items():
            assert lab.widgets[name].description == label != ""
        assert 'role="img"' in figure(lab) and 'aria-label="' in figure(lab)
        shown = " ".join(part.text or "" for part in ElementTree.fromstring(lab.svg()).iter())  # sound XML
        assert all(label in shown for label in lab.labels.values())


@pytest.mark.parametrize("change", [{"beta": 0}, {"beta": math.inf}, {"beta": "warm"}, {"x": 3}, {"heat": 1}])
def test_an_impossible_value_is_refused(labs, change):
    lab = labs.temperature_lab()
    with pytest.raises(ValueError):
        lab.change(**change)
    assert lab.values == {"beta": 4.0, "x": 0.5, "hard": False}


# The budget


def test_start_pause_and_start_again(lab):
    assert not lab.running and lab.widgets["pause"].disabled and not lab.widgets["start"].disabled
    before = time.monotonic()
    lab.widgets["start"].click()
    assert time.monotonic() - before < 1  # nothing waits for the training
    assert lab.running and lab.widgets["start"].disabled and not lab.widgets["pause"].disabled
    assert until(lambda: steps(lab) >= 3) and len(threads()) == 1
    lab.widgets["start"].click()
    lab.start()
    assert len(threads()) == 1
    lab.widgets["pause"].click()
    assert not lab.running and lab.wait(PATIENCE) and not threads()
    before = steps(lab)
    time.sleep(0.1)
    assert steps(lab) == before and "paused" in lab.words()
    lab.start()
    assert until(lambda: steps(lab) > before)


def test_to_the_end_in_the_background(lab, digits):
    lab.start()
    assert lab.wait(PATIENCE) and lab.error is None and not lab.running
    assert lab.trainer.done and "done" in figure(lab)
    assert csq.report(lab.exact).total.paper_bits <= QUICK.target
    assert csq.evaluate(lab.exact, digits, "valid") == lab.hard
    assert all(lab.widgets[name].disabled for name in ("start", "pause", "target"))
    assert not lab.widgets["reset"].disabled
    lab.start()
    assert not lab.running


def test_background_and_foreground_train_alike(labs, lab, digits):
    other = labs.budget_lab(data=digits, recipe=QUICK)
    other.run(30)
    lab.start()
    assert until(lambda: steps(lab) >= 10)
    lab.pause()
    assert lab.wait(PATIENCE)
    lab.run(30 - steps(lab)) if steps(lab) < 30 else other.run(steps(lab) - 30)
    assert all(torch.equal(a, b) for a, b in zip(lab.model.state_dict().values(), other.model.state_dict().values()))


def test_at_the_rates_of_fit_it_trains_as_fit_does(labs, digits):
    lab = labs.budget_lab(data=digits, recipe=QUICK)
    lab.trainer.rate = csq.Trainer(csq.models.digits_cnn(), digits, QUICK).rate  # its search keeps its rates high
    lab.run(10**4)
    torch.manual_seed(QUICK.seed)
    result = csq.fit(csq.models.digits_cnn(), digits, QUICK, device="cpu", progress=False)
    exact, expected = lab.exact.state_dict(), result.model.state_dict()
    assert all(torch.equal(exact[key], expected[key]) for key in expected)


def test_budget_and_temperature_change_while_it_trains(lab):
    lab.start()
    lab.widgets["target"].value = 5.0
    assert lab.widgets["beta"].disabled
    lab.widgets["schedule"].value = False
    assert not lab.widgets["beta"].disabled
    lab.widgets["beta"].value = 7.0
    assert lab.running and lab.error is None
    before = steps(lab)
    assert until(lambda: steps(lab) > before + 2)
    lab.pause()
    assert lab.wait(PATIENCE)
    assert lab.budget.target == 5 and not lab.widgets["schedule"].value
    assert float(next(iter(lab.budget.layers.values())).beta) == pytest.approx(7)
    lab.widgets["schedule"].value = True
    lab.run(1)
    assert lab.widgets["beta"].value == pytest.approx(lab.trainer.beta()) != 7
    assert "budget 5" in figure(lab) and lab.widgets["beta"].disabled
    lab.change(beta=3)
    assert not lab.widgets["schedule"].value and lab.widgets["beta"].value == 3


def test_the_schedule_stays_while_it_trains(lab):
    lab.start()
    while lab.running:
        lab.show()  # as a front end's events do, beside the thread
        time.sleep(0.001)
    assert lab.values["schedule"] and lab.widgets["schedule"].value and lab.trainer.temperature is None
    assert lab.wait(PATIENCE) and lab.widgets["beta"].value > 100


def test_a_new_budget_leaves_the_masks_and_turns_the_sign(labs, digits):
    lab = labs.budget_lab(data=digits, recipe=QUICK.replace(masks="free"))
    lab.run(1)
    layers, optimizer = lab.budget.layers, lab.trainer.optimizer
    q = next(iter(layers.values())).q
    lab.change(target=2)
    high = lab.budget.penalty()
    logits = q.detach().clone()
    with torch.no_grad():
        for planes in layers.values():
            planes.q[:5] = -0.5
    lab.change(target=6)
    assert high > 0 > lab.budget.penalty()
    assert lab.trainer.optimizer is optimizer and torch.equal(q.detach()[5:], logits[5:])


def test_a_new_budget_leaves_precisions_and_lambda_and_moves_the_line(lab):
    lab.run(lab.trainer.epoch_steps)
    found, multiplier, optimizer = precisions_of(lab), lab.budget.multiplier, lab.trainer.optimizer
    before = lab.budget.line(0.9)
    lab.change(target=5)
    assert precisions_of(lab) == found and lab.budget.multiplier == multiplier
    assert lab.budget.line(0.9) - before == 3 and lab.trainer.optimizer is optimizer


@pytest.mark.parametrize("masks, epochs", [("free", 3), ("ordered", 4)])
def test_planes_go_and_come_back(labs, digits, masks, epochs):
    lab = labs.budget_lab(data=digits, recipe=QUICK.replace(search_epochs=8, masks=masks))
    lab.run(epochs * lab.trainer.epoch_steps)
    low = lab.history[-1]["bits"]
    lab.change(target=6)
    lab.run(2 * lab.trainer.epoch_steps)
    assert low < 4 < lab.history[-1]["bits"]
    assert {entry["target"] for entry in lab.history} == {2, 6}


def test_an_impossible_budget_shows_and_the_old_one_stays(lab):
    with pytest.raises(ValueError, match="cannot be reached"):
        lab.change(target=9)
    assert "ValueError: target 9 cannot be reached" in alert(lab) and 'role="alert"' in alert(lab)
    assert lab.values["target"] == lab.budget.target == 2
    lab.widgets["target"].value = 3.0
    assert alert(lab) == "" and lab.error is None


def test_after_the_freeze_the_budget_is_spent(lab):
    lab.run(QUICK.search_epochs * lab.trainer.epoch_steps + 1)
    assert lab.widgets["target"].disabled
    with pytest.raises(ValueError, match="the masks are frozen"):
        lab.change(target=3)
    lab.widgets["reset"].click()
    assert not lab.widgets["target"].disabled and steps(lab) == 0 and alert(lab) == ""


def test_a_recipe_without_finetune_ends_at_the_budget(labs, digits):
    lab = labs.budget_lab(data=digits, recipe=QUICK.replace(search_epochs=1, finetune_epochs=0))
    lab.run(10**4)
    assert csq.report(lab.exact).total.paper_bits <= 2


def test_reset_while_it_trains(lab):
    first = {k: v.clone() for k, v in lab.model.state_dict().items()}
    lab.change(target=3)
    lab.start()
    assert until(lambda: steps(lab) >= 3)
    lab.widgets["reset"].click()
    assert lab.wait(PATIENCE) and not lab.running
    assert steps(lab) == 0 and len(lab.history) == 1
    assert all(torch.equal(v, first[k]) for k, v in lab.model.state_dict().items() if not k.endswith("beta"))
    assert lab.budget.target == lab.widgets["target"].value == 3


class Bomb(nn.Module):
    """Fails in its tenth forward pass in training."""

    def __init__(self):
        super().__init__()
        self.fc, self.count = nn.Linear(64, 10), 0

    def forward(self, x):
        self.count += self.training
        if self.count >= 10:
            raise RuntimeError("<b>boom</b>")
        return self.fc(x.flatten(1))


def test_an_error_in_the_background_shows_and_the_thread_ends(labs, digits):
    lab = labs.budget_lab(Bomb(), digits, QUICK)
    assert alert(lab) == ""
    lab.start()
    assert lab.wait(PATIENCE) and not threads()
    assert isinstance(lab.error, RuntimeError)
    assert "RuntimeError: &lt;b&gt;boom&lt;/b&gt;" in alert(lab)  # and no markup of its own
    assert not lab.running and not lab.widgets["start"].disabled and "boom" in lab.svg()
    lab.reset()
    assert alert(lab) == "" and lab.error is None
    with pytest.raises(RuntimeError, match="boom"):
        lab.run(20)


def test_a_loss_that_is_not_finite_stops_it(labs, digits):
    lab = labs.budget_lab(data=digits, recipe=QUICK)
    with torch.no_grad():
        next(p for n, p in lab.model.named_parameters() if n.endswith("scale")).fill_(math.nan)
    lab.start()
    assert lab.wait(PATIENCE) and "the loss became nan" in str(lab.error)


def test_one_lab_trains_at_a_time(labs, lab, digits):
    other = labs.budget_lab(data=digits, recipe=QUICK)
    lab.start()
    other.start()
    assert not lab.running and other.running and until(lambda: len(threads()) == 1)
    assert not lab.widgets["start"].disabled
    before = steps(lab)
    lab.pause()  # pauses no other
    assert other.running and until(lambda: steps(other) >= 3) and steps(lab) == before
    other.pause()
    assert other.wait(PATIENCE)


def test_start_and_pause_in_quick_turns(lab):
    for _ in range(40):
        lab.start()
        lab.pause()
    assert lab.wait(PATIENCE) and until(lambda: not threads()) and lab.error is None
    lab.start()
    assert lab.wait(PATIENCE) and lab.trainer.done


def test_own_model_data_and_recipe(labs, digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = model[1].weight.detach().clone()
    lab = labs.budget_lab(model, digits, QUICK.replace(target=3.0, search_epochs=1))
    lab.run(10**4)
    assert torch.equal(model[1].weight, before) and type(model[1]) is nn.Linear
    assert csq.report(lab.exact).total.paper_bits == 3
    with pytest.raises(ValueError, match="target"):
        labs.budget_lab(recipe=QUICK.replace(target=None))
    with pytest.raises(ValueError, match="does not take inputs"):
        labs.budget_lab(nn.Linear(3, 10), digits, QUICK)


def test_the_callers_random_numbers_stay(labs, digits):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    labs.budget_lab(data=digits, recipe=QUICK).run(5)
    assert torch.equal(torch.rand(3), wanted)


# The scheme


@pytest.fixture(scope="module")
def trained(labs, digits, tmp_path_factory):
    """One network thrice: converted, hardened, and the path of its packed file."""
    lab = labs.budget_lab(data=digits, recipe=QUICK)
    lab.run(10**4)
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    csq.save_packed(csq.harden(lab.model), path)
    return lab.model, csq.harden(lab.model), path


def test_converted_hardened_and_packed_say_the_same(labs, trained):
    explorers = [labs.scheme_explorer(source) for source in trained]
    wanted = csq.integers(trained[1])
    for name in wanted:
        for explorer in explorers:
            explorer.widgets["layer"].value = name
            assert torch.equal(explorer.codes(), wanted[name].codes)
            assert alert(explorer) == "" and name in explorer.words()
        assert len({explorer.words() for explorer in explorers}) == 1
        assert figure(explorers[0]) == figure(explorers[1])  # a packed file lists its layers by name
    assert labs.scheme_explorer(str(trained[2])).words() == labs.scheme_explorer(trained[2]).words()


def test_orders(labs):
    model = csq.models.digits_cnn()
    csq.convert(model)
    for planes, precision in zip(csq.planes.csq_layers(model).values(), (5.0, 2, 3, 1, 4, 2, 3, 8)):
        planes.q.data.fill_(precision)
    explorer = labs.scheme_explorer(model)
    seen = set()
    for order in explorer.orders:
        explorer.widgets["order"].value = order
        seen.add(tuple(re.findall(r">([a-z]+\d?(?:\.conv)?)</text>", figure(explorer))))
    assert len(seen) == 3
    with pytest.raises(ValueError, match="must be one of"):
        explorer.change(layer="nowhere")


def test_read_again_follows_a_training_and_shows_what_fails(labs, digits, tmp_path):
    lab = labs.budget_lab(data=digits, recipe=QUICK)
    explorer = labs.scheme_explorer(lab.model)
    before = figure(explorer)
    lab.run(2 * lab.trainer.epoch_steps)
    explorer.widgets["read"].click()
    assert figure(explorer) != before and alert(explorer) == ""
    path = tmp_path / "m.safetensors"
    csq.save_packed(csq.harden(lab.model), path)
    explorer = labs.scheme_explorer(path)
    before = figure(explorer)
    path.write_bytes(b"no model")
    explorer.widgets["read"].click()
    assert "PackedFileError" in alert(explorer) and figure(explorer) == before


def test_what_has_no_scheme_is_refused(labs, tmp_path):
    with pytest.raises(ValueError, match="no quantized layer"):
        labs.scheme_explorer(nn.Linear(2, 2))
    with pytest.raises(FileNotFoundError):
        labs.scheme_explorer(tmp_path / "nothing")


def test_a_single_layer_without_planes(labs):
    model = nn.Linear(3, 2)
    csq.convert(model)
    with torch.no_grad():
        model.csq.q.fill_(-1)
    explorer = labs.scheme_explorer(model)
    assert "0 of 8 planes kept" in explorer.words() and "(model)" in explorer.svg()
    assert explorer.widgets["layer"].value == ""


# Where no one can move a slider


class Shell:
    class kernel:
        _allow_stdin = True


def test_a_widget_where_someone_is_there_and_else_a_picture(labs, monkeypatch):
    lab = labs.temperature_lab()
    assert set(lab._repr_mimebundle_()) == {"image/svg+xml", "text/plain"} and not lab._widgets
    ipython = pytest.importorskip("IPython")
    monkeypatch.setattr(ipython, "get_ipython", Shell)
    assert set(lab._repr_mimebundle_()) == {VIEW, "image/svg+xml", "text/plain"}
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    assert set(lab._repr_mimebundle_()) == {VIEW, "text/plain"}


def test_a_notebook_run_by_a_program_gets_pictures_and_no_widget_state():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell("from csq_book import labs\nlabs.temperature_lab()")]
    client = nbclient.NotebookClient(notebook, timeout=PATIENCE, resources={"metadata": {"path": str(ROOT / "book")}})
    client.execute()
    (output,) = [output for output in notebook.cells[0].outputs if output.output_type == "execute_result"]
    assert set(output.data) == {"image/svg+xml", "text/plain"} and "widgets" not in notebook.metadata


def test_the_built_page_shows_only_pictures():
    file = ROOT / "_build/html/book/widgets.html"
    if not file.exists():
        pytest.skip("no built book with labs: run make book")
    text = file.read_text("utf8")
    assert "widget-view" not in text and "jupyter-widgets" not in text and text.count("<figure") >= 3


def test_a_picture_needs_no_ipywidgets():
    code = "import sys; sys.modules['ipywidgets'] = None; from csq_book import labs; labs.temperature_lab().svg()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "book")
