"""The scoreboard, on rows made up for the purpose."""

import pytest
from made_up_rows import made_up, table_of

from csq_book.results import scoreboard
from csq_book.results.scoreboard import UNIFORM, Entry
from csq_mini.files import write_json


def csq(seed, accuracy, **changes):
    return made_up("csq", 2.0, seed, accuracy=accuracy, **changes)


def planes(seed, accuracy, scheme="uniform", **changes):
    return made_up("planes", 2.0, seed, accuracy=accuracy, allocation=scheme, **changes)


ROWS = table_of(
    csq(0, 0.915), csq(1, 0.913), csq(2, 0.914), planes(0, 0.909), planes(1, 0.911), planes(2, 0.907),
    planes(0, 0.905, "hand"), planes(3, 0.907, "hand"),
)  # fmt: skip


def test_methods_are_told_apart_by_their_scheme_and_the_best_comes_first():
    found = scoreboard.entries(ROWS)
    assert [str(entry) for entry in found] == ["CSQ", "fixed planes, uniform", "fixed planes, by hand"]
    assert found[Entry("csq", None)] == {(s, -1): pytest.approx(a) for s, a in ((0, 91.5), (1, 91.3), (2, 91.4))}
    assert str(Entry("ste", "random17")) == "straight-through, random17"


def test_the_board_counts_and_pairs_by_seed():
    csq_line, uniform, hand = scoreboard.board(ROWS).to_dict("records")
    assert csq_line == {"method": "CSQ", "accuracy": "91.40%", "spread": "0.10", "n": "3", "bits": "2.000",
                        "ahead by": "+0.50", "from, to": "+0.20, +0.70", "seeds ahead": "3 of 3"}  # fmt: skip
    assert uniform["accuracy"] == "90.90%" and uniform["ahead by"] == uniform["seeds ahead"] == ""
    assert hand["n"] == "2" and hand["ahead by"] == "-0.40" and hand["seeds ahead"] == "0 of 1"  # one seed is in both


def test_folds_are_pairs_too_and_a_single_run_has_no_spread():
    rows = table_of(csq(0, 0.98, fold=0), planes(0, 0.97, fold=0), planes(0, 0.99, fold=1))
    single, uniform = scoreboard.board(rows).sort_values("method").to_dict("records")
    assert single["spread"] == "one seed" and single["ahead by"] == "+1.00" and uniform["n"] == "2"
    assert set(scoreboard.entries(rows)[UNIFORM]) == {(0, 0), (0, 1)}


@pytest.mark.parametrize(("rows", "said"), [
    ((csq(0, 0.9),), "no row of fixed planes, uniform"),
    ((planes(0, 0.9), planes(0, 0.91)), "two rows of planes with seed 0"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused(rows, said):
    with pytest.raises(ValueError, match=said):
        scoreboard.board(table_of(*rows))


def test_the_figure_has_a_ring_for_each_run_and_a_bar_for_each_method():
    ax = scoreboard.dots(ROWS, line=92.5).axes[0]
    rings, bars = [], []
    for line in ax.lines[:-1]:
        (rings if line.get_marker() == "o" else bars).append(line.get_xdata())
    assert [len(xs) for xs in rings] == [3, 3, 2] and len(bars) == 3
    assert bars[0][0] == pytest.approx(91.4) and ax.lines[-1].get_xdata()[0] == 92.5
    assert [text.get_text() for text in ax.get_yticklabels()][0] == "CSQ"


def test_the_schemes_stand_beside_each_other_in_groups_and_the_same_one_once():
    scheme = {"conv1": "11111111", "fc": "1......."}
    rows = table_of(planes(0, 0.9, "hand"), planes(1, 0.9, "hand"), csq(1, 0.9, scheme=scheme), csq(0, 0.9))
    ax = scoreboard.schemes(rows).axes[0]
    assert ax.images[0].get_array().tolist() == [[2, 8, 2], [2, 1, 2]]  # CSQ by seed, then what was given
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "1", "all"]
    assert [text.get_text() for text in ax.texts[-2:]] == ["CSQ", "hand"]
    assert ax.get_yticklabels()[0].get_text().startswith("conv1  40.3%")


def test_accuracy_stands_against_the_loss_before_the_training_and_chance_at_the_foot():
    losses = {key: 0.01 * (i + 1) for i, key in enumerate(ROWS["key"].unique())}
    ax = scoreboard.foretold(ROWS, losses, [0.2, 0.3, 0.4]).axes[0]
    labels = [line.get_label() for line in ax.lines]
    assert labels == ["CSQ", "uniform", "hand", "at random"]
    first, chance = ax.lines[0], ax.lines[-1]
    assert len(first.get_xdata()) == 3 and first.get_ydata() == pytest.approx([91.5, 91.3, 91.4])
    assert list(chance.get_xdata()) == [0.2, 0.3, 0.4] and max(chance.get_ydata()) < 90.5


def test_the_spread_is_that_over_seeds_not_over_folds():
    rows = table_of(*(planes(seed, 0.9 + 0.01 * seed + 0.02 * fold, fold=fold) for seed in (0, 1) for fold in (0, 1)))
    [line] = scoreboard.board(rows).to_dict("records")
    assert (line["accuracy"], line["spread"], line["n"]) == ("91.50%", "0.71", "4")  # means 91 and 92


def test_accuracy_by_size_has_a_line_a_method_and_reaches_from_the_lowest_run_to_the_highest():
    rows = table_of(csq(0, 0.91), csq(1, 0.93), planes(0, 0.90), planes(1, 0.90),
                    made_up("planes", 1.5, 0, accuracy=0.88, allocation="uniform"))  # fmt: skip
    ax = scoreboard.by_size(rows, line=92.5).axes[0]
    assert scoreboard.by_size(rows[rows["method"] == "csq"]).axes[0].containers  # no uniform planes are needed
    first, second = ax.containers
    assert [c.get_label() for c in ax.containers] == ["uniform", "CSQ"]
    assert [*first[0].get_ydata()] == pytest.approx([88, 90]) and [*second[0].get_ydata()] == pytest.approx([92])
    [[_, low], [_, high]] = second[2][0].get_segments()[0]
    assert (low, high) == pytest.approx((91, 93))


def test_the_tables_of_the_workflow_are_read_and_show_what_every_rate_came_to(tmp_path, monkeypatch):
    monkeypatch.setattr(scoreboard, "CLAIMS", tmp_path)
    rows = table_of(csq(0, 0.92, fold=0), planes(0, 0.91, fold=0))
    rows.to_csv(tmp_path / "bed.csv", index=False)
    assert scoreboard.board(scoreboard.runs_of("bed")).equals(scoreboard.board(rows))
    tried = [{"changes": {"lr": lr}, "validation": value, "cut": 0.25} for lr, value in ((0.1, 0.95), (0.3, 0.97))]
    write_json(tmp_path / "bed.json", {"settings": [
        {"target": 2.0, "method": "planes+uniform", "changes": {"lr": 0.3}, "tried": tried},
        {"target": 2.0, "method": "csq", "changes": {"lr": 0.1}, "tried": tried}]})  # fmt: skip
    assert scoreboard.by_rate("bed").to_dict("records") == [
        {"method": "CSQ", "rate 0.1": "95.0%", "rate 0.3": "(97.0%)"},
        {"method": "fixed planes, uniform", "rate 0.1": "(95.0%)", "rate 0.3": "97.0%"}]
    assert scoreboard.by_rate("bed", "cut")["rate 0.1"].to_list() == ["0.25", "(0.25)"]


def test_a_grid_has_a_line_for_each_strength(tmp_path, monkeypatch):
    monkeypatch.setattr(scoreboard, "CLAIMS", tmp_path)
    tried = [{"changes": {"lr": lr, "strength": s}, "validation": lr + s} for lr in (0.1, 0.3) for s in (0.02, 0.2)]
    both = [{"target": 2.0, "method": m, "changes": tried[0]["changes"], "tried": tried} for m in ("csq", "ste")]
    write_json(tmp_path / "bed.json", {"settings": both})
    lines = scoreboard.by_rate("bed").to_dict("records")
    assert [(line["method"], line["strength"]) for line in lines] == [
        ("CSQ", 0.02), ("CSQ", 0.2), ("straight-through", 0.02), ("straight-through", 0.2)]  # fmt: skip
    assert lines[0]["rate 0.1"] == "12.0%" and lines[1]["rate 0.3"] == "(50.0%)"
