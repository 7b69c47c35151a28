"""The recorder of the runs that charts show."""

import json
from pathlib import Path

import csq_mini as csq

ROOT = Path(__file__).resolve().parents[1]
RECORD = json.loads((ROOT / "book/results/charts.json").read_text("utf8"))


def test_a_recorded_run_is_the_run_of_fit(tmp_path):
    import record

    recipe = csq.recipes.get("digits", target=2, search_epochs=1, finetune_epochs=1)
    model, data = csq.models.digits_cnn(), csq.data.digits()
    ours = record.Recorded(model, data, recipe)
    result, expected = ours.train(), csq.fit(model, data, recipe, device="cpu", progress=False)
    assert result.accuracy == expected.accuracy and list(result.history["hard"]) == list(expected.history["hard"])
    for epoch, row in zip(ours.epochs, expected.history.to_dict("records")):
        assert epoch["beta"] == row["beta"] and len(epoch["logits"]) == record.QUANTILES
        assert {name: bin(planes).count("1") for name, planes in epoch["open"].items()} == {
            name.removeprefix("bits/"): bits for name, bits in row.items() if name.startswith("bits/")}  # fmt: skip
    record.write(tmp_path / "charts.json", RECORD["runs"])
    assert json.loads((tmp_path / "charts.json").read_text("utf8")) == RECORD
