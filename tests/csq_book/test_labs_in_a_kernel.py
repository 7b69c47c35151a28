"""Labs in a kernel of their own, moved by the messages that a notebook's front end sends."""

from __future__ import annotations

import os
import queue
import time
from pathlib import Path

import pytest

pytest.importorskip("ipywidgets", reason='needs pip install -e ".[notebook]"')
jupyter_client = pytest.importorskip("jupyter_client", reason='needs pip install -e ".[test]"')
pytest.importorskip("ipykernel", reason='needs pip install -e ".[test]"')

ROOT = Path(__file__).resolve().parents[2]
VIEW = "application/vnd.jupyter.widget-view+json"
PATIENCE = 180  # seconds, on a machine that does other things too


class FrontEnd:
    """Keeps the states of a kernel's widgets, as JupyterLab does, and moves them."""

    def __init__(self, client):
        self.client = client
        self.states = {}  # of each widget, by the id of its model
        self.shown = []  # what cells displayed
        self.idle = set()  # requests that are done

    def until(self, condition):
        """Take messages until the condition holds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, self.states
            try:
                self._take(self.client.get_iopub_msg(timeout=1))
            except queue.Empty:
                pass

    def _take(self, message):
        kind, content = message["msg_type"], message["content"]
        assert kind != "error", content
        if kind == "comm_open":
            self.states[content["comm_id"]] = dict(content["data"]["state"])
        elif kind == "comm_msg" and content["data"]["method"] == "update":
            self.states[content["comm_id"]] |= content["data"]["state"]
        elif kind in ("execute_result", "display_data"):
            self.shown.append(content["data"])
        elif kind == "status" and content["execution_state"] == "idle":
            self.idle.add(message["parent_header"].get("msg_id"))

    def run(self, code):
        request = self.client.execute(code, allow_stdin=True)
        self.until(lambda: request in self.idle)

    def find(self, description):
        """The id of the widget with this label."""
        [found] = [key for key, state in self.states.items() if state.get("description") == description]
        return found

    def picture(self, title):
        """What the lab of this name shows."""
        [text] = [s["value"] for s in self.states.values() if f'aria-label="{title}' in str(s.get("value"))]
        return text

    def move(self, description, value):
        self._send(description, {"method": "update", "state": {"value": value}, "buffer_paths": []})

    def click(self, description):
        self._send(description, {"method": "custom", "content": {"event": "click"}})

    def _send(self, description, data):
        content = {"comm_id": self.find(description), "data": data}
        self.client.shell_channel.send(self.client.session.msg("comm_msg", content))


@pytest.fixture
def front_end():
    path = os.pathsep.join([str(ROOT), str(ROOT / "book"), os.environ.get("PYTHONPATH", "")])
    manager = jupyter_client.KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(ROOT), env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(PATIENCE)
        yield FrontEnd(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_slider_moves_the_picture_and_the_training_goes_on_beside_it(front_end):
    front_end.run("from csq_book import labs\nlabs.temperature_lab()")
    assert VIEW in front_end.shown[-1]
    slider = "Temperature \u03b2"
    front_end.move(slider, 20.0)
    front_end.until(lambda: "\u03b2 = 20.0:" in front_end.picture("temperature lab"))
    gate = front_end.find(slider)

    front_end.run("lab = labs.budget_lab()\nlab")
    front_end.states[gate]["description"] = "the first"  # so that its label says which of the two it is
    front_end.click("Start")
    front_end.until(lambda: "search, running" in front_end.picture("budget lab"))
    epoch = front_end.picture("budget lab")
    front_end.until(lambda: front_end.picture("budget lab") != epoch)
    front_end.move("the first", 50.0)
    front_end.until(lambda: "\u03b2 = 50.0:" in front_end.picture("temperature lab"))
    front_end.move("Budget \u03c4 (bits a weight)", 4.0)
    front_end.until(lambda: "budget 4," in front_end.picture("budget lab"))
    assert front_end.states[front_end.find("Temperature by the schedule")]["value"] is True
    front_end.click("Pause")
    front_end.until(lambda: "search, paused" in front_end.picture("budget lab"))
    front_end.run("assert lab.wait(60) and lab.error is None and lab.values['target'] == 4")
