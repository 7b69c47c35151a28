from importlib.util import find_spec

import pandas
import pytest
import torch
from conftest import converted, few_digits, shake
from torch import nn

import csq_mini as csq

pytestmark = pytest.mark.skipif(not find_spec("seaborn"), reason="needs the extra notebook")


@pytest.fixture(scope="module")
def result():
    recipe = csq.Recipe(target=3.0, search_epochs=2, finetune_epochs=1, batch_size=64, recalibration_batches=1)
    return csq.fit(csq.models.digits_cnn(), few_digits(), recipe, progress=False)


def drawn(figure, tmp_path):
    figure.savefig(tmp_path / "figure.png", dpi=40)
    assert (tmp_path / "figure.png").stat().st_size > 1000
    return figure.axes


def test_training_draws_loss_temperature_and_both_accuracies(result, tmp_path):
    loss, beta, accuracy = drawn(csq.plots.training(result.history), tmp_path)
    assert loss.lines[0].get_ydata().tolist() == result.history["loss"].tolist()
    assert beta.get_yscale() == "log" and beta.lines[0].get_ydata().tolist() == result.history["beta"].tolist()
    assert [line.get_ydata().tolist() for line in accuracy.lines[:2]] == [
        result.history[k].tolist() for k in ("soft", "hard")
    ]
    assert all(ax.lines[-1].get_xdata()[0] == 2.5 for ax in (loss, beta, accuracy))  # the freeze, after epoch 2


NAMES = ["a$\\frac$b", "x\ny", "<script>alert(1)</script>", "\x1b[31mred", "$", "\\$x$", "very" * 60, "plain"]


@pytest.mark.filterwarnings("error")
def test_names_are_drawn_as_plain_text(tmp_path):
    model = nn.Sequential()
    for name in NAMES:
        model.add_module(name, nn.Linear(4, 4))
    csq.convert(model)
    entry = {"epoch": 1, "phase": "search", "bits": 8.0} | {f"bits/{name}": 8 for name in NAMES}
    figures = [csq.plots.scheme(csq.report(model)), csq.plots.bits(pandas.DataFrame([entry, entry | {"epoch": 2}]))]
    shown = ["a$\\frac$b", "x\\ny", "<script>alert(1)</script>", "\\x1b[31mred", "$", "\\$x$", None, "plain"]
    for figure, ax in zip(figures, (0, 1)):
        svg, texts = figure.svg(), figure.axes[ax].get_yticklabels()
        assert "<script" not in svg and "\x1b" not in svg
        for text, name in zip(texts, shown):
            plain, mathematics = text._preprocess_math(text.get_text())
            assert not mathematics and (plain == name if name else "very" in plain and len(plain) < 40)
    for name in NAMES:
        drawn(csq.plots.weights(torch.randn(4, 4), csq.integers(model)["plain"], name), tmp_path)


@pytest.mark.parametrize("target", [None, 3.0])
def test_bits_draws_the_average_and_a_row_a_layer(result, target, tmp_path):
    top, ax, *_ = drawn(csq.plots.bits(result.history, target), tmp_path)
    assert top.lines[0].get_ydata().tolist() == result.history["bits"].tolist()
    names = [c.removeprefix("bits/") for c in result.history if c.startswith("bits/")]
    assert [label.get_text() for label in ax.get_yticklabels()] == names
    for y in range(len(names)):
        bars = [bar for bar in ax.patches if abs(bar.get_y() + bar.get_height() / 2 - y) < 0.1]
        assert sum(bar.get_width() for bar in bars) == 3  # epochs
    assert [int(text.get_text()) for text in ax.texts][: len(names)] == [
        result.history[f"bits/{n}"].iloc[-1] for n in names
    ]
    assert (target in [line.get_ydata()[0] for line in top.lines]) == (target is not None)


def test_scheme_draws_a_square_for_each_plane_in_its_colour(tmp_path):
    model = shake(converted(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))), 1)
    csq.Budget(model, 4.0).freeze()
    report = csq.report(model)
    ax, side = drawn(csq.plots.scheme(report), tmp_path)
    squares = {(round(p.get_x()), round(p.get_y() + 0.4)): p.get_facecolor() for p in ax.patches}
    assert len(squares) == len(ax.patches) == 16
    marks = {(x, y): mark for y, row in enumerate(report.rows) for x, mark in enumerate(row.planes)}
    colors = {mark: {squares[place] for place in marks if marks[place] == mark} for mark in set(marks.values())}
    assert all(len(c) == 1 for c in colors.values()) and len(set.union(*colors.values())) == len(colors) >= 2
    assert [bar.get_width() for bar in side.patches] == pytest.approx([100 * row.share for row in report.rows])


def test_weights_draws_all_weights_before_and_the_values_after(tmp_path):
    layer = nn.Linear(20, 10)
    before = layer.weight.detach().clone()
    csq.convert(layer, 2)
    after = csq.integers(layer)[""]
    top, bottom = drawn(csq.plots.weights(before, after, "fc"), tmp_path)[:2]
    assert sum(p.get_height() for p in top.patches) == 200 == sum(p.get_height() for p in bottom.patches)
    centres = [p.get_x() + p.get_width() / 2 for p in bottom.patches]
    assert centres == pytest.approx([-3, -2, -1, 0, 1, 2, 3])  # the codes of two planes
    assert "fc" in top.get_title() and f"{after.step:.3g}" in bottom.get_xlabel()


def test_a_style_does_not_outlive_its_block():
    import matplotlib

    matplotlib.use("agg")  # else the first figure chooses, which changes rcParams too
    plots, before = csq.plots, matplotlib.rcParams.copy()
    with plots.style() as colors:
        assert len(colors) >= 4 and matplotlib.rcParams["figure.facecolor"] == "white"
    assert matplotlib.rcParams == before


def test_colors_stand_out_from_a_white_and_from_a_dark_page():
    def light(color):
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))

    for color in csq.plots.COLORS[:4]:
        for ground in ("#ffffff", "#121212"):
            high, low = sorted((light(color), light(ground)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 3
