import pytest
from conftest import converted, few_digits, shake
from torch import nn

import csq_mini as csq

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")
pytest.importorskip("seaborn")


@pytest.fixture(scope="module")
def result():
    recipe = csq.Recipe(target=3.0, search_epochs=2, finetune_epochs=1, batch_size=64, recalibration_batches=1)
    return csq.fit(csq.models.digits_cnn(), few_digits(), recipe, progress=False)


@pytest.fixture(autouse=True)
def closed():
    yield
    matplotlib.pyplot.close("all")


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


def test_scheme_draws_a_square_a_plane_in_its_colour(tmp_path):
    model = shake(converted(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))), 1)
    csq.Budget(model, 4.0).freeze()
    report = csq.report(model)
    ax, side = drawn(csq.plots.scheme(report), tmp_path)
    assert len(ax.patches) == 16
    marks = "".join(row.planes for row in report.rows)
    colors = {mark: {p.get_facecolor() for p, m in zip(ax.patches, marks) if m == mark} for mark in set(marks)}
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
    before = matplotlib.rcParams.copy()
    with csq.plots.style() as colors:
        assert len(colors) >= 4 and matplotlib.rcParams["figure.facecolor"] == "white"
    assert matplotlib.rcParams == before


# Figures of results


def row_of(model, planes, **fields):
    from test_verdicts import made_up

    return made_up(model=model, scheme=planes, **fields)


def test_a_scheme_of_a_row_takes_the_shares_from_its_network(tmp_path):
    planes = {"stem.conv": "1111....", "fc": "..1F...."}
    row = row_of("digits_cnn", planes, data="digits", profile="smoke", gpu=None)
    ax, side = drawn(csq.plots.scheme(row), tmp_path)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(planes) and len(ax.patches) == 16
    model = csq.models.digits_cnn()
    counts = [model.get_submodule(name).weight.numel() for name in planes]
    assert [bar.get_width() for bar in side.patches] == pytest.approx([100 * n / sum(counts) for n in counts])
    wide = row_of("resnet20", {"conv1": "1.......", "fc": "1......."}, data="cifar100", profile="smoke")
    shares = [bar.get_width() for bar in csq.plots.scheme(wide).axes[1].patches]
    assert shares == pytest.approx([100 * 432 / 6832, 100 * 6400 / 6832])  # a hundred classes


def test_accuracy_against_size_draws_the_best_rows_and_the_published_figures(tmp_path):
    from test_verdicts import made_up, table_of

    from csq_book.verdicts import select

    rows = [made_up(target=2.0, seed=s, accuracy=0.90 + 0.01 * s, paper_bits=1.98) for s in (0, 1)]
    rows += [
        made_up("float", accuracy=0.93),
        made_up(profile="cpu", accuracy=0.91),
        made_up(target=4.0, profile="smoke"),
        made_up(target=2.0, profile="cpu", accuracy=0.1),  # there are better ones
    ]
    rows += [made_up("no-masks", target=2.0, accuracy=0.5)]
    figures = [
        {"what": "other, best", "weight_bits": 3, "value": 90.5},
        {"what": "other, last", "compression": 16, "value": 90.0},
        {"what": "float", "weight_bits": 32, "value": 92.0}, {"what": "unread", "weight_bits": 2, "value": None},
        {"what": "mixed", "weight_bits": None, "value": 80.0},
    ]  # fmt: skip
    figure = csq.plots.accuracy_size(select(table_of(*rows), {}), figures)
    [ax] = drawn(figure, tmp_path)
    by_label = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert by_label["other"] == [[3, 90.5], [2, 90]]
    assert by_label["float, published"][0][1] == 92 and by_label["float, ours"][0][1] == pytest.approx(93)
    ours = {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in ax.containers}
    assert ours == {"CSQ, ours (full)": [pytest.approx([1.98, 90.5])], "CSQ, ours (cpu)": [pytest.approx([3, 91])]}
    assert not {"unread", "mixed"} & set(by_label)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == len(set(names)) == 5


def test_differences_draws_a_bar_a_verdict_and_says_what_has_not_run(tmp_path):
    from csq_book.verdicts import Sample, Verdict

    whole, none = Sample(92.0, None, 1), Sample(float("nan"), None, 0)
    found = [Verdict({"what": f"part {i}"}, ours, whole, "no bound")
             for i, ours in enumerate([Sample(91.5, None, 1), Sample(92.25, None, 1), none])]  # fmt: skip
    [ax] = drawn(csq.plots.differences(found), tmp_path)
    assert [bar.get_width() for bar in ax.patches] == [-0.5, 0.25, 0]
    assert [text.get_text() for text in ax.texts] == ["\u22120.50", "+0.25", "not run"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["part 0", "part 1", "part 2"]
    low, high = ax.get_xlim()
    assert low < -0.5 and high > 0.25
    drawn(csq.plots.differences(found[2:]), tmp_path)
