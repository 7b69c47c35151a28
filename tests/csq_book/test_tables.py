"""The tables of a page, from rows made up for the purpose."""

import pandas
import pytest
from made_up_rows import CPU, H200, made_up, table_of

from csq_book.results import ROWS, tables, verdicts
from csq_mini.experiments.rows import SCHEMA, load_rows, write_row


@pytest.fixture(scope="module")
def book():
    return verdicts.read_published()


def test_without_rows_every_planned_run_and_every_claim_reads_not_run(book):
    for name, page in book["pages"].items():
        runs, found = tables.runs(book, name, table_of()), tables.verdicts(book, name, table_of())
        assert len(runs) and set(runs["accuracy"]) == {"not run"} and runs["n"].str.startswith("0 of ").all()
        assert set(found["verdict"]) == {"not run"} and len(found) == len(page["claims"])
        near = tables.comparison(book, name, table_of())
        assert len(near) == len(page["figures"]) and not {"92", "91"} & set("".join(near.get("ours", [])))


def test_the_table_of_runs_joins_what_is_planned_and_what_is_there(book):
    rows = [made_up(seed=s, accuracy=0.92 + s / 1000) for s in (0, 1)]
    rows += [made_up(target=1.5), made_up(profile="cpu", start="f", start_accuracy=0.9), made_up("one-rate")]
    shown = tables.runs(book, "resnet20", table_of(*rows)).set_index(["run", "profile"])
    line = shown.loc["CSQ, target 3", "full, 100 epochs"]
    assert (line["accuracy"], line["spread"], line["n"]) == ("92.05%", "0.07", "2 of 3")
    assert (line["bits"], line["smaller"], line["time"], line["hardware"]) == ("3.00", "8.0 times", "3 min", H200)
    extra = shown.loc["CSQ, target 1.5", "full, 100 epochs"]  # nobody planned it
    assert (extra["spread"], extra["n"]) == ("one seed", "1")
    assert shown.loc["CSQ, target 3, from a float checkpoint", "cpu, 7 epochs"]["n"] == "1"
    assert ("CSQ, target 3", "cpu, 7 epochs") not in shown.index  # done, from a checkpoint
    assert shown.loc["CSQ, target 2", "cpu, 7 epochs"]["accuracy"] == "not run"
    assert not [run for run, _ in shown.index if "rate" in run]  # of another page
    assert [profile.split(",")[0] for _, profile in shown.index] == sorted(
        (profile.split(",")[0] for _, profile in shown.index), key=["full", "held", "cpu", "smoke"].index
    )


def test_the_table_of_verdicts_states_bound_difference_and_verdict(book):
    rows = [made_up(seed=s, accuracy=0.92) for s in (0, 1, 2)]
    rows += [made_up("float", seed=s, accuracy=0.9235, images_per_second=1e5) for s in (0, 1, 2)]
    shown = tables.verdicts(book, "resnet20", table_of(*rows)).set_index("what")
    line = shown.loc["target 3, 100 epochs"]
    assert list(line) == ["at most 0.4 points below", "reached", "92.00%", "0.00", "3", "float: 92.35%", "-0.35",
                          "not read, see the paper"]  # fmt: skip
    assert shown.loc["float, 100 epochs"]["asked"] == "at least 91.50%"
    speed = shown.loc["speed of CSQ, same machine"]
    assert (speed["verdict"], speed["difference"], speed["ours"]) == ("short", "0.70 times", "70,000 images/s")
    assert shown.loc["time of a run, 100 epochs, H200"]["verdict"] == "reached"
    assert shown.loc["target 2, 200 epochs"]["verdict"] == "not run"


def test_a_published_figure_stands_beside_our_nearest_runs(book):
    rows = [made_up(target=2.0, accuracy=0.91), made_up(activation_bits=4, accuracy=0.90)]
    shown = tables.comparison(book, "resnet20", table_of(*rows))
    line = shown[(shown["published"] == "DoReFa re-implementation") & (shown["weight bits"] == "2")].iloc[0]
    assert (line["figure"], line["ours"], line["difference"], line["n"]) == ("91.05%", "91.00%", "-0.05", "1")
    assert line["our runs"] == "CSQ, target 2, 100 epochs (full)" and "DoReFa" in line["source"]
    pact = tables.comparison(book, "activations", table_of(*rows)).iloc[0]
    assert (pact["figure"], pact["difference"]) == ("90.89%", "-0.89") and "4-bit activations" in pact["our runs"]
    smoke = tables.comparison(book, "resnet20", table_of(made_up(target=2.0, profile="smoke")))
    assert "91.05" not in "".join(smoke["ours"]) and set(smoke["difference"]) == {""}


def test_a_table_is_shown_whole(book):
    html = tables.show(pandas.DataFrame({"text": ["word " * 30]})).data
    assert "word " * 29 in html and "..." not in html and "<th>0</th>" not in html
    assert 'class="dataframe results"' in html  # the style sheet knows it by this name
    assert set(tables.profiles("resnet20", "cifar10")["profile"]) == {"smoke", "cpu", "held", "bed", "full"}


def test_rows_of_another_schema_are_refused_with_their_file(tmp_path):
    write_row(tmp_path, made_up(schema=SCHEMA + 1), pandas.DataFrame({"epoch": [1]}))
    with pytest.raises(ValueError, match=f"csq-3.0.*json has schema {SCHEMA + 1}.*reads {SCHEMA}"):
        load_rows(tmp_path)


def test_a_table_made_of_files_reads_as_one_made_of_rows(tmp_path):
    rows = [made_up(seed=0), made_up("float", seed=1, gpu=CPU), made_up(seed=2, activation_bits=4)]
    for row in rows:
        write_row(tmp_path, row, pandas.DataFrame({"epoch": [1]}))
    loaded = load_rows(tmp_path).sort_values("seed", ignore_index=True)
    pandas.testing.assert_frame_equal(loaded, table_of(*rows), check_dtype=False)


def test_the_books_own_rows_fill_every_table(book):
    rows = load_rows(ROWS)
    for name in book["pages"]:
        found = tables.verdicts(book, name, rows)
        assert set(found["verdict"]) <= {"reached", "short", "no bound", "not run", "incomplete"}
        assert (tables.runs(book, name, rows)["accuracy"] != "not run").any()
