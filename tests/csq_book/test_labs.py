"""Labs: what their controls do, without a front end; and one of them moved by keyboard in a real JupyterLab."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import csq_mini as csq

ipywidgets = pytest.importorskip("ipywidgets", reason='needs pip install -e ".[book]"')

ROOT = Path(__file__).resolve().parents[1]
VIEW = "application/vnd.jupyter.widget-view+json"
QUICK = csq.recipes.get("digits", search_epochs=2, finetune_epochs=1)
PATIENCE = 120  # seconds, on a machine that does other things too


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
def lab(digits):
    """A short budget lab whose widgets are there; afterwards no thread is left."""
    made = csq_book.labs.budget_lab(data=digits, recipe=QUICK)
    assert made.widgets["box"].children
    yield made
    made.pause()
    assert made.wait(PATIENCE) and until(lambda: not threads())


def figure(lab):
    return lab.widgets["figure"].value


def alert(lab):
    return lab.widgets["error"].value


# The temperature


def test_temperature_lab_computes_gate_and_slope_anew():
    lab = csq_book.labs.temperature_lab()
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


def test_every_control_has_a_label():
    conv = nn.Sequential(nn.Linear(2, 2))
    csq.convert(conv)
    for lab in (csq_book.labs.temperature_lab(), csq_book.labs.scheme_explorer(conv), csq_book.labs.budget_lab(recipe=QUICK)):
        for control in lab.controls:
            assert lab.widgets[control.name].description == control.label != ""
            assert control.label in lab.svg()
        assert 'role="img"' in figure(lab) and 'aria-label="' in figure(lab)
        ElementTree.fromstring(lab.svg())  # sound XML


@pytest.mark.parametrize("change", [{"beta": 0}, {"beta": math.inf}, {"beta": "warm"}, {"x": 3}, {"heat": 1}])
def test_a_value_that_cannot_be_is_refused(change):
    lab = csq_book.labs.temperature_lab()
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
    assert until(lambda: lab.search.step >= 3) and len(threads()) == 1
    lab.widgets["start"].click()
    lab.start()
    assert len(threads()) == 1
    lab.widgets["pause"].click()
    assert not lab.running and lab.wait(PATIENCE) and until(lambda: not threads())
    step = lab.search.step
    time.sleep(0.1)
    assert lab.search.step == step and "paused" in lab.words()
    lab.start()
    assert until(lambda: lab.search.step > step)


def test_to_the_end_in_the_background(lab, digits):
    lab.start()
    assert lab.wait(PATIENCE) and lab.error is None and not lab.running
    assert until(lambda: lab.widgets["progress"].value == lab.search.steps == lab.widgets["progress"].max)
    assert until(lambda: "done" in figure(lab))
    assert csq.report(lab.exact).total.paper_bits <= QUICK.target
    assert csq.evaluate(lab.exact, digits, "valid") == lab.search.hard
    assert all(lab.widgets[name].disabled for name in ("start", "pause", "target"))
    assert not lab.widgets["reset"].disabled
    lab.start()
    assert not lab.running


def test_the_background_computes_what_the_foreground_does(lab, digits):
    other = csq_book.labs.budget_lab(data=digits, recipe=QUICK)
    other.run(30)
    lab.start()
    assert until(lambda: lab.search.step >= 10)
    lab.pause()
    assert lab.wait(PATIENCE)
    lab.run(30 - lab.search.step) if lab.search.step < 30 else other.run(lab.search.step - 30)
    assert all(torch.equal(a, b) for a, b in zip(lab.model.state_dict().values(), other.model.state_dict().values()))


def test_budget_and_temperature_change_while_it_trains(lab):
    lab.start()
    lab.widgets["target"].value = 5.0
    assert lab.widgets["beta"].disabled
    lab.widgets["schedule"].value = False
    assert not lab.widgets["beta"].disabled
    lab.widgets["beta"].value = 7.0
    assert lab.running and lab.error is None
    step = lab.search.step
    assert until(lambda: lab.search.step > step + 2)
    lab.pause()
    assert lab.wait(PATIENCE)
    assert lab.search.budget.target == 5 and not lab.widgets["schedule"].value
    assert float(next(iter(lab.search.budget.layers.values())).beta) == pytest.approx(7)
    lab.widgets["schedule"].value = True
    lab.run(1)
    assert lab.widgets["beta"].value == pytest.approx(lab.search.temperature()) != 7
    assert "budget 5" in figure(lab) and lab.widgets["beta"].disabled
    lab.change(beta=3)
    assert not lab.widgets["schedule"].value and lab.widgets["beta"].value == 3


def test_the_schedule_stays_while_it_trains(lab):
    lab.start()
    while lab.running:
        lab.show()  # as a front end's events do, beside the thread
        time.sleep(0.001)
    assert lab.values["schedule"] and lab.widgets["schedule"].value and lab.search.beta is None
    assert lab.wait(PATIENCE) and lab.widgets["beta"].value > 100


def test_a_new_budget_leaves_the_masks_and_turns_the_sign(lab):
    q = next(iter(lab.search.budget.layers.values())).q
    lab.change(target=2)
    high = lab.search.budget.penalty()
    logits, momentum = q.detach().clone(), lab.search.optimizer
    with torch.no_grad():
        for layer in lab.search.budget.layers.values():
            layer.q[:5] = -0.5
    lab.change(target=6)
    assert high > 0 > lab.search.budget.penalty()
    assert lab.search.optimizer is momentum and torch.equal(q.detach()[5:], logits[5:])


def test_planes_go_and_come_back(digits):
    lab = csq_book.labs.budget_lab(data=digits, recipe=QUICK.replace(search_epochs=8))
    lab.run(3 * lab.search.epoch_steps)
    low = lab.rows[-1]["bits"]
    lab.change(target=5)
    lab.run(3 * lab.search.epoch_steps)
    assert low < 3 < lab.rows[-1]["bits"]
    assert {row["target"] for row in lab.rows} == {2, 5}


def test_an_impossible_budget_shows_and_the_old_one_stays(lab):
    with pytest.raises(ValueError, match="cannot be reached"):
        lab.change(target=9)
    assert "ValueError: target 9 cannot be reached" in alert(lab) and 'role="alert"' in alert(lab)
    assert lab.values["target"] == lab.search.budget.target == 2
    lab.widgets["target"].value = 3.0
    assert alert(lab) == "" and lab.error is None


def test_after_the_freeze_the_budget_is_spent(lab):
    lab.run(lab.search.searching + 1)
    assert lab.widgets["target"].disabled
    with pytest.raises(ValueError, match="press Reset"):
        lab.change(target=3)
    lab.widgets["reset"].click()
    assert not lab.widgets["target"].disabled and lab.search.step == 0 and alert(lab) == ""


def test_reset_while_it_trains(lab):
    first = {k: v.clone() for k, v in lab.model.state_dict().items()}
    lab.change(target=3)
    lab.start()
    assert until(lambda: lab.search.step >= 3)
    lab.widgets["reset"].click()
    assert lab.wait(PATIENCE) and not lab.running
    assert lab.search.step == 0 and len(lab.rows) == 1 and lab.widgets["progress"].value == 0
    assert all(torch.equal(v, first[k]) for k, v in lab.model.state_dict().items() if not k.endswith("beta"))
    assert lab.search.budget.target == lab.widgets["target"].value == 3


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


def test_an_exception_in_the_background_shows_and_the_thread_ends(digits):
    lab = csq_book.labs.budget_lab(Bomb(), digits, QUICK)
    assert alert(lab) == ""
    lab.start()
    assert lab.wait(PATIENCE) and until(lambda: not threads())
    assert isinstance(lab.error, RuntimeError)
    assert until(lambda: "RuntimeError: &lt;b&gt;boom&lt;/b&gt;" in alert(lab))  # and no markup of its own
    assert not lab.running and not lab.widgets["start"].disabled and "boom" in lab.svg()
    lab.reset()
    assert alert(lab) == "" and lab.error is None
    with pytest.raises(RuntimeError, match="boom"):
        lab.run(20)


def test_a_loss_that_is_not_finite_stops_it(digits):
    lab = csq_book.labs.budget_lab(data=digits, recipe=QUICK)
    with torch.no_grad():
        next(p for n, p in lab.model.named_parameters() if n.endswith("scale")).fill_(math.nan)
    lab.start()
    assert lab.wait(PATIENCE) and "the loss became nan" in str(lab.error)


def test_one_thread_for_all_labs(lab, digits):
    other = csq_book.labs.budget_lab(data=digits, recipe=QUICK)
    lab.start()
    other.start()
    assert not lab.running and other.running and len(threads()) == 1
    assert not lab.widgets["start"].disabled
    lab.pause()  # of one that does not run: nothing
    assert other.running
    other.pause()
    assert other.wait(PATIENCE)


def test_start_and_pause_in_quick_turns(lab):
    for _ in range(40):
        lab.start()
        assert len(threads()) <= 1
        lab.pause()
    assert lab.wait(PATIENCE) and until(lambda: not threads()) and lab.error is None


def test_own_model_data_and_recipe(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = model[1].weight.detach().clone()
    lab = csq_book.labs.budget_lab(model, digits, QUICK.replace(target=3.0, search_epochs=1))
    lab.run(10**4)
    assert torch.equal(model[1].weight, before) and type(model[1]) is nn.Linear
    assert csq.report(lab.exact).total.paper_bits == 3
    with pytest.raises(ValueError, match="target"):
        csq_book.labs.budget_lab(recipe=QUICK.replace(target=None))
    with pytest.raises(ValueError, match="does not take inputs"):
        csq_book.labs.budget_lab(nn.Linear(3, 10), digits, QUICK)


def test_the_callers_random_numbers_stay(digits):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    csq_book.labs.budget_lab(data=digits, recipe=QUICK).run(5)
    assert torch.equal(torch.rand(3), wanted)


# The scheme


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """One network thrice: converted, hardened, and the path of its packed file."""
    lab = csq_book.labs.budget_lab(data=digits, recipe=QUICK)
    lab.run(10**4)
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    csq.save_packed(csq.harden(lab.model), path)
    return lab.model, csq.harden(lab.model), path


def test_converted_hardened_and_packed_say_the_same(trained):
    explorers = [csq_book.labs.scheme_explorer(source) for source in trained]
    wanted = csq.integers(trained[1])
    for name in wanted:
        for explorer in explorers:
            explorer.widgets["layer"].value = name
            assert torch.equal(explorer.codes(), wanted[name].codes)
            assert alert(explorer) == "" and name in explorer.words()
        assert len({explorer.words() for explorer in explorers}) == 1
        assert figure(explorers[0]) == figure(explorers[1])  # a packed file lists its layers by name
    assert csq_book.labs.scheme_explorer(str(trained[2])).words() == csq_book.labs.scheme_explorer(trained[2]).words()


def test_orders(trained):
    explorer = csq_book.labs.scheme_explorer(trained[1])
    seen = set()
    for order in explorer.orders:
        explorer.widgets["order"].value = order
        seen.add(tuple(re.findall(r">(?:\u25b8 )?([a-z]+\d?(?:\.conv)?)</text>", figure(explorer))))
    assert len(seen) == 3
    with pytest.raises(ValueError, match="must be one of"):
        explorer.change(layer="nowhere")


def test_read_again_follows_a_training_and_shows_what_fails(digits, tmp_path):
    lab = csq_book.labs.budget_lab(data=digits, recipe=QUICK)
    explorer = csq_book.labs.scheme_explorer(lab.model)
    before = figure(explorer)
    lab.run(2 * lab.search.epoch_steps)
    explorer.widgets["read"].click()
    assert figure(explorer) != before and alert(explorer) == ""
    path = tmp_path / "m.safetensors"
    csq.save_packed(csq.harden(lab.model), path)
    explorer = csq_book.labs.scheme_explorer(path)
    before = figure(explorer)
    path.write_bytes(b"no model")
    explorer.widgets["read"].click()
    assert "PackedFileError" in alert(explorer) and figure(explorer) == before


def test_what_is_no_scheme_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no quantized layer"):
        csq_book.labs.scheme_explorer(nn.Linear(2, 2))
    with pytest.raises(FileNotFoundError):
        csq_book.labs.scheme_explorer(tmp_path / "nothing")


def test_a_layer_without_planes_and_a_single_one():
    model = nn.Linear(3, 2)
    csq.convert(model)
    with torch.no_grad():
        model.q.fill_(-1)
    explorer = csq_book.labs.scheme_explorer(model)
    assert "0 planes kept" in explorer.words() and "(model)" in explorer.svg()
    assert explorer.widgets["layer"].value == ""


# A page without a kernel


class Shell:
    class kernel:
        _allow_stdin = True


def test_with_someone_there_a_widget_and_else_a_picture(monkeypatch):
    lab = csq_book.labs.temperature_lab()
    assert set(lab._repr_mimebundle_()) == {"image/svg+xml", "text/plain"} and not lab._widgets
    ipython = pytest.importorskip("IPython")
    monkeypatch.setattr(ipython, "get_ipython", Shell)
    assert set(lab._repr_mimebundle_()) == {VIEW, "image/svg+xml", "text/plain"}
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    assert set(lab._repr_mimebundle_()) == {VIEW, "text/plain"}


def test_a_notebook_run_by_a_program_gets_pictures_and_no_widget_state():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell("import csq_mini as csq\ncsq_book.labs.temperature_lab()")]
    nbclient.NotebookClient(notebook, timeout=PATIENCE, resources={"metadata": {"path": str(ROOT)}}).execute()
    (output,) = [output for output in notebook.cells[0].outputs if output.output_type == "execute_result"]
    assert set(output.data) == {"image/svg+xml", "text/plain"} and "widgets" not in notebook.metadata


def test_the_built_page_shows_pictures_alone():
    file = ROOT / "_build/html/book/widgets.html"
    if not file.exists():
        pytest.skip("no built book with labs: run make book")
    text = file.read_text("utf8")
    assert "widget-view" not in text and "jupyter-widgets" not in text and text.count("<figure") >= 3


def test_the_library_alone_needs_no_ipywidgets():
    code = "import sys, csq_mini; csq_book.labs.temperature_lab().svg(); assert 'ipywidgets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# In JupyterLab


@pytest.fixture
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright, and a Chromium")
    with api.sync_playwright() as play:
        place = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        try:
            chromium = play.chromium.launch(executable_path=place)
        except api.Error:
            pytest.skip("no Chromium: run playwright install chromium, or install the system's")
        yield chromium
        chromium.close()


@pytest.fixture
def jupyterlab(tmp_path):
    """Address of a notebook in a JupyterLab of its own, on this machine alone."""
    if importlib.util.find_spec("jupyterlab") is None:
        pytest.skip("no JupyterLab: pip install jupyterlab")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    codes = "import csq_mini as csq\ncsq_book.labs.temperature_lab()", "lab = csq_book.labs.budget_lab()\nlab"
    notebook.cells = [nbformat.v4.new_code_cell(code) for code in codes]
    (tmp_path / "work").mkdir()
    nbformat.write(notebook, tmp_path / "work/lab.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, log = secrets.token_hex(16), tmp_path / "log"
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
              "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
              "IPYTHONDIR": "ipython"}  # fmt: skip
    environment = os.environ | {name: str(tmp_path / place) for name, place in places.items()}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1",
               f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
               f"--ServerApp.root_dir={tmp_path / 'work'}", "--ServerApp.allow_root=True",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]  # fmt: skip
    with log.open("w") as out:
        how = {"cwd": tmp_path, "env": environment, "stdout": out, "stderr": out, "start_new_session": True}
        server = subprocess.Popen(command, **how)
        try:
            assert until(lambda: answers(f"http://127.0.0.1:{port}/api?token={token}") or server.poll() is not None)
            assert server.poll() is None, log.read_text()
            yield f"http://127.0.0.1:{port}/lab/tree/lab.ipynb?token={token}"
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)  # which ends its kernels too
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def test_in_jupyterlab_a_slider_moves_the_figure_and_the_training(jupyterlab, browser, tmp_path):
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.set_default_timeout(90_000)  # a loaded machine takes its time to import torch
    page.goto(jupyterlab)
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for()
    first, second = (page.locator(".jp-CodeCell").nth(i) for i in range(2))
    picture, words = first.locator(".widget-html svg"), first.locator(".widget-html p").last
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
    page.wait_for_timeout(4000)  # idle is said a little before the kernel takes cells
    select = page.locator(".jp-Dialog button.jp-mod-accept")  # where it asks for a kernel all the same
    for _ in range(3):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        end = time.monotonic() + 45
        while not picture.is_visible() and time.monotonic() < end:
            if select.is_visible():
                select.click()
            page.wait_for_timeout(200)
        if picture.is_visible():
            break
    assert picture.is_visible(), "no widget, though the notebook was run three times"
    handle = first.locator(".widget-slider .noUi-handle").first
    before = picture.inner_html()
    handle.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    until_page(page, lambda: picture.inner_html() != before and "\u03b2 = 4.0:" not in words.inner_text())
    # It trains, and the kernel answers the other lab meanwhile.
    bar = second.locator(".progress-bar")
    second.get_by_role("button", name="Start").click()
    until_page(page, lambda: "running" in second.locator(".widget-html p").last.inner_text())
    until_page(page, lambda: bar.bounding_box()["width"] > 1)
    before = words.inner_text()
    handle.focus()
    page.keyboard.press("ArrowRight")
    until_page(page, lambda: words.inner_text() != before)
    assert second.get_by_label("Temperature by the schedule").is_checked()
    second.get_by_role("button", name="Pause").click()
    until_page(page, lambda: "paused" in second.locator(".widget-html p").last.inner_text())
    page.screenshot(path=tmp_path / "lab.png")
    page.close()


def until_page(page, condition):
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end, "nothing changed on the page"
        page.wait_for_timeout(100)
