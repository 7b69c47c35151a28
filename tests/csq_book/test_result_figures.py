"""Figures of results, from rows made up for the purpose."""

import pytest
from made_up_rows import made_up, table_of

import csq_mini as csq

pytest.importorskip("matplotlib", reason='needs pip install -e ".[notebook]"')
pytest.importorskip("seaborn", reason='needs pip install -e ".[notebook]"')


def axes_of(figure):
    assert figure.svg().rstrip().endswith("</svg>")
    return figure.axes


def test_a_row_gets_the_shares_from_its_network():
    from csq_book.results import figures

    planes = {"stem.conv": "1111....", "fc": "..1F...."}
    row = made_up(model="digits_cnn", scheme=planes, data="digits", profile="smoke", gpu=None)
    ax, side = axes_of(figures.scheme(row))
    assert [label.get_text() for label in ax.get_yticklabels()] == list(planes) and len(ax.patches) == 16
    model = csq.models.digits_cnn()
    counts = [model.get_submodule(name).weight.numel() for name in planes]
    assert [bar.get_width() for bar in side.patches] == pytest.approx([100 * n / sum(counts) for n in counts])
    wide = made_up(model="resnet20", scheme={"conv1": "1.......", "fc": "1......."}, data="cifar100", profile="smoke")
    shares = [bar.get_width() for bar in figures.scheme(wide).axes[1].patches]
    assert shares == pytest.approx([100 * 432 / 6832, 100 * 6400 / 6832])  # a hundred classes


def test_accuracy_against_size_draws_the_best_rows_and_the_published_figures():
    from csq_book.results import figures
    from csq_book.results.verdicts import select

    rows = [made_up(target=2.0, seed=s, accuracy=0.90 + 0.01 * s, paper_bits=1.98) for s in (0, 1)]
    rows += [
        made_up("float", accuracy=0.93),
        made_up(profile="cpu", accuracy=0.91),
        made_up(target=4.0, profile="smoke"),
        made_up(target=2.0, profile="cpu", accuracy=0.1),  # there are better ones
        made_up("no-masks", target=2.0, accuracy=0.5),
    ]
    published = [
        {"what": "other, best", "weight_bits": 3, "value": 90.5},
        {"what": "other, last", "compression": 16, "value": 90.0},
        {"what": "float", "weight_bits": 32, "value": 92.0}, {"what": "unread", "weight_bits": 2, "value": None},
        {"what": "mixed", "weight_bits": None, "value": 80.0},
    ]  # fmt: skip
    figure = figures.accuracy_size(select(table_of(*rows), {}), published)
    [ax] = axes_of(figure)
    by_label = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert by_label["other"] == [[3, 90.5], [2, 90]]
    assert by_label["float, published"][0][1] == 92 and by_label["float, ours"][0][1] == pytest.approx(93)
    ours = {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in ax.containers}
    assert ours == {"CSQ, ours (full)": [pytest.approx([1.98, 90.5])], "CSQ, ours (cpu)": [pytest.approx([3, 91])]}
    assert not {"unread", "mixed"} & set(by_label)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == len(set(names)) == 5


def test_differences_has_a_bar_for_each_verdict_and_says_what_has_not_run():
    from csq_book.results import figures
    from csq_book.results.verdicts import Sample, Verdict

    whole, none = Sample(92.0, None, 1), Sample(float("nan"), None, 0)
    found = [Verdict({"what": f"part {i}"}, ours, whole, "no bound")
             for i, ours in enumerate([Sample(91.5, None, 1), Sample(92.25, None, 1), none])]  # fmt: skip
    [ax] = axes_of(figures.differences(found))
    assert [bar.get_width() for bar in ax.patches] == [-0.5, 0.25, 0]
    assert [text.get_text() for text in ax.texts] == ["\u22120.50", "+0.25", "not run"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["part 0", "part 1", "part 2"]
    low, high = ax.get_xlim()
    assert low < -0.5 and high > 0.25
    axes_of(figures.differences(found[2:]))
