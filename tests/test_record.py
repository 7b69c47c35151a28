"""The recorder of the runs that charts show."""

import json
from pathlib import Path

import torch

import csq_mini as csq

FILE = Path(__file__).resolve().parents[1] / "book/results/charts.json"


def test_a_recorded_run_is_the_run_of_fit():
    import record

    recipe = csq.recipes.get("digits", target=2, search_epochs=3, finetune_epochs=1)
    data, epochs = csq.data.digits(), []
    torch.manual_seed(0)
    model = csq.models.digits_cnn()
    expected = csq.fit(model, data, recipe, device="cpu", bfloat16=False, progress=False)
    torch.manual_seed(recipe.seed)
    trainer = csq.Trainer(model, data, recipe)
    trainer.on_epoch = lambda entry: epochs.append(record.watch(trainer, entry))
    while not trainer.done:
        trainer.epoch()
    assert csq.evaluate(trainer.hardened(), data) == expected.accuracy
    for epoch, line in zip(epochs, expected.history.to_dict("records"), strict=True):
        assert epoch["beta"] == line["beta"] and len(epoch["logits"]) == record.QUANTILES
        assert {name: bin(planes).count("1") for name, planes in epoch["open"].items()} == {
            name.removeprefix("bits/"): bits for name, bits in line.items() if name.startswith("bits/")}  # fmt: skip
    noted = record.noted(trainer, epochs)
    assert [epoch["phase"] for epoch in noted["gates"]] == ["search"] * 3 + ["finetune"]


def test_the_file_is_written_as_it_was_read(tmp_path):
    import record

    runs = json.loads(FILE.read_text("utf8"))["runs"]
    record.write(tmp_path / "charts.json", runs)
    assert (tmp_path / "charts.json").read_bytes() == FILE.read_bytes()
