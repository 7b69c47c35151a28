"""Verdicts on rows made up for the purpose, and the book's file of claims."""

import math

import pytest
from made_up_rows import CPU, made_up, table_of

from csq_book.results import PUBLISHED, tables, verdicts
from csq_mini.experiments.plans import METHODS, PARTS


@pytest.fixture(scope="module")
def book():
    return verdicts.read_published()


PAGE = {"rows": {"model": "resnet20", "data": "cifar10", "activation_bits": None}}
CLAIM = {"what": "it", "rows": {"method": "csq", "target": 3, "profile": "full", "epochs": 100}, "seeds": 2}
FLOAT = {"of": {"method": "float", "target": None}, "named": "float"}


def word(claim, *rows):
    return verdicts.judge({**CLAIM, **claim}, PAGE, table_of(*rows)).word


# Choosing rows, and what they come to


def test_rows_are_chosen_by_every_kind_of_field():
    rows = table_of(
        made_up(seed=0), made_up(seed=1, epochs=200), made_up("float", seed=2), made_up(seed=3, activation_bits=4),
        made_up(seed=4, gpu=CPU, start="f", start_accuracy=0.9),
    )  # fmt: skip

    def seeds(**wanted):
        return verdicts.select(rows, wanted)["seed"].tolist()

    assert seeds() == [0, 1, 2, 3, 4]
    assert seeds(epochs=200) == [1] and seeds(method="float") == [2] == seeds(target=None)
    assert seeds(activation_bits=4) == [3] and seeds(activation_bits=None) == [0, 1, 2, 4]
    assert seeds(started=True) == [4] and seeds(hardware="H200") == [0, 1, 2, 3]
    assert seeds(target=3, method="csq", epochs=100, activation_bits=None, hardware="H200") == [0]
    assert verdicts.select(table_of(), {"target": 3, "hardware": "H200"}).empty
    with pytest.raises(KeyError):
        seeds(methd="csq")


def test_mean_and_spread_are_those_of_the_seeds():
    found = verdicts.sample(table_of(made_up(accuracy=0.91), made_up(accuracy=0.92), made_up(accuracy=0.94)))
    assert found.n == 3 and found.mean == pytest.approx(277 / 3)
    assert found.spread == pytest.approx(math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2))  # n - 1
    assert verdicts.sample(table_of(made_up())).spread is None
    none = verdicts.sample(table_of())
    assert none.n == 0 and math.isnan(none.mean)
    assert verdicts.sample(table_of(made_up(seconds=7.0)), "seconds").mean == 7.0


def test_the_best_rows_are_of_the_longest_profile_and_never_smoke():
    smoke, cpu = made_up(profile="smoke"), made_up(profile="cpu")
    full, twice = [made_up(seed=s) for s in (0, 1)], made_up(epochs=200)

    def best(*rows):
        found = verdicts.best_rows(verdicts.select(table_of(*rows), {}))
        return found["profile"].tolist(), found["epochs"].tolist()

    assert best(smoke) == ([], [])
    assert best(smoke, cpu) == (["cpu"], [7])
    assert best(smoke, cpu, twice, *full) == (["full", "full"], [100, 100])
    assert best(full[0], twice) == (["full"], [200])


# Verdicts


def test_a_claim_is_reached_short_incomplete_or_not_run():
    low, high = made_up(seed=0, accuracy=0.914), made_up(seed=1, accuracy=0.916)
    assert word({"at_least": 91.5}, low, high) == "reached"  # the mean is on the bound
    assert word({"at_least": 91.51}, low, high) == "short"
    assert word({"at_least": 91.51}, low) == "incomplete" and word({"at_least": 91.5}) == "not run"
    assert word({"at_most": 91.5}, low, high) == "reached" and word({"at_most": 91.4}, low, high) == "short"
    assert word({}, low, high) == "no bound" and word({}) == "not run"
    assert word({"at_least": 1}, made_up("float"), made_up(target=2.0), made_up(profile="cpu")) == "not run"


def test_a_claim_beside_float_needs_the_float_runs_too():
    ours = [made_up(seed=s, accuracy=0.92) for s in (0, 1)]
    floats = [made_up("float", seed=s, accuracy=0.924) for s in (0, 1)]
    near = {**FLOAT, "within": 0.4}
    assert word(near, *ours, *floats) == "reached" and word({**near, "within": 0.39}, *ours, *floats) == "short"
    assert word(near, *ours) == "not run" and word(near, *floats) == "not run"
    assert word(near, *ours, floats[0]) == "incomplete"
    assert word(FLOAT, *ours, *floats) == "no bound"
    assert verdicts.judge({**CLAIM, **near}, PAGE, table_of(*ours, *floats)).difference == pytest.approx(-0.4)


def test_a_claim_beside_the_checkpoint_counts_only_runs_that_began_from_one():
    claim = {"of": "start", "named": "its checkpoint", "within": 0.7, "seeds": 1}
    started = made_up(accuracy=0.9190, start="f", start_accuracy=0.9255)
    assert word(claim, started, made_up(seed=1, accuracy=0.5)) == "reached"
    assert word({**claim, "within": 0.6}, started) == "short" and word(claim, made_up()) == "not run"


def test_speeds_are_compared_on_one_machine_alone():
    claim = {**FLOAT, "measure": "images_per_second", "ratio": 0.85, "seeds": 1}
    ours = made_up(images_per_second=80.0)
    same, other = made_up("float", images_per_second=90.0), made_up("float", gpu="another", images_per_second=99.0)
    assert word(claim, ours, same) == "reached" and word({**claim, "ratio": 0.9}, ours, same, other) == "short"
    elsewhere = made_up(gpu="a third", images_per_second=1.0)  # where no float run is
    assert word(claim, ours, other) == "not run" and word(claim, ours, elsewhere, same) == "reached"
    assert verdicts.judge({**CLAIM, **claim}, PAGE, table_of(ours, same)).difference == pytest.approx(8 / 9)


# The file of published figures, of plans and of claims


def test_every_figure_says_the_same_things_and_has_a_source(book):
    fields = {"id", "what", "model", "data", "activation_bits", "measure", "value", "source"}
    for figure in book["figures"]:
        assert fields <= set(figure) <= fields | {"weight_bits", "compression", "ours"}, figure["id"]
        assert ("weight_bits" in figure) != ("compression" in figure) and figure["source"]
        assert figure["measure"] in ("accuracy", "images per second", "seconds per epoch")
    ids = [figure["id"] for figure in book["figures"]]
    assert len(ids) == len(set(ids)) == len(tables.published(book))


def test_no_figure_of_the_csq_paper_is_given(book):
    of_paper = [figure for figure in book["figures"] if "2212.02770" in figure["source"]]
    assert of_paper and all(figure["value"] is None for figure in of_paper)
    assert all(figure["value"] is not None for figure in book["figures"] if figure not in of_paper)
    shown = tables.published(book)
    assert set(shown[shown["source"].str.contains("2212.02770")]["figure"]) == {"not read, see the paper"}


def test_bits_of_a_figure_may_come_from_its_compression(book):
    bits = {figure["id"]: verdicts.weight_bits(figure) for figure in book["figures"]}
    assert bits["bsq-16-best"] == 2 and bits["bsq-22-best"] == pytest.approx(32 / 22.1) and bits["dorefa-w4"] == 4
    assert bits["csq-paper-resnet20"] is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rows: {method: csq, target: 3, profile: full", "rows: {method: csq, targt: 3, profile: full", "targt"),
        ("seeds: 3, at_least", "seeds: 3, atleast", "at_least"),
        ("of: {method: csq}", "of: {method: csqq}", "csqq"),
        ("profile: cpu", "profile: cpus", "cpus"),
        ("measure: seconds, seeds", "measure: second, seeds", "second"),
        ("figures: [pact-w4a4", "figures: [pact-w4", "pact-w4a4"),
        ("      smoke:\n", "      smok:\n", "smok"),
        ("ours: {method: float}", "ours: {methods: float}", "methods"),
    ],
)  # fmt: skip
def test_a_misspelt_field_is_refused(old, new, message, tmp_path):
    text = PUBLISHED.read_text("utf8")
    assert old in text
    (tmp_path / "published.yml").write_text(text.replace(old, new, 1), "utf8")
    with pytest.raises(ValueError, match=f"published.yml: unknown .*{message}"):
        verdicts.read_published(tmp_path / "published.yml")


def test_every_method_has_a_name_and_every_part_a_claim(book):
    assert set(tables.NAMES) == set(METHODS)
    whole = ("csq", "float", "free-masks")  # nothing is taken away from these
    page, parts = book["pages"]["ablations"], {m: tables.NAMES[m] for m in PARTS if m not in whole}
    named = {(claim["rows"]["method"], claim["rows"]["epochs"]): claim["what"] for claim in page["claims"]}
    assert named == {(m, epochs): f"{parts[m]}, {epochs} epochs" for m in parts for epochs in (7, 100)}
    for plans in page["runs"].values():
        assert set(plans[0]["methods"]) == {"csq", *parts}
