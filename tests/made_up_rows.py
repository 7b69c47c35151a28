"""Rows of results made up for tests."""

import pandas

from csq_mini.experiments.plans import plan
from csq_mini.experiments.rows import SCHEMA, Row

H200, CPU = "NVIDIA H200", None
SCHEME = {"conv1": "11......", "fc": "1F......"}


def made_up(method="csq", target=3.0, seed=0, profile="full", accuracy=0.92, gpu=H200, **changes):
    """A row as a run would leave it."""
    names = {key: changes.pop(key) for key in ("model", "data", "activation_bits", "epochs") if key in changes}
    model, data = names.get("model", "resnet20"), names.get("data", "cifar10")
    recipe = plan(method, model, data, target, seed, profile,
                  activation_bits=names.get("activation_bits"), epochs=names.get("epochs"))  # fmt: skip
    key = "-".join(map(str, (model, data, method, target, recipe.activation_bits, profile, recipe.search_epochs, seed)))
    fields = {
        "schema": SCHEMA, "key": key, "method": method, "model": model, "data": data, "target": recipe.target,
        "activation_bits": recipe.activation_bits, "seed": seed, "profile": profile,
        "search_epochs": recipe.search_epochs, "finetune_epochs": recipe.finetune_epochs, "start": None,
        "start_accuracy": None, "accuracy": accuracy, "train_images": 49000, "test_images": 10000,
        "paper_bits": recipe.target or 32.0, "stored_bits": 3.0, "bytes": 125_000, "original_bytes": 1_000_000,
        "scheme": {} if method == "float" else SCHEME, "history_digest": "0" * 64, "seconds": 170.0,
        "images_per_second": 70_000.0, "device": "cuda" if gpu else "cpu",
        "hardware": {"cpu": "a processor", "threads": 2, "gpu": gpu},
        "versions": {}, "commit": None, "recipe": recipe.to_dict(),
    }  # fmt: skip
    return Row(**fields | changes)


def table_of(*rows):
    """The rows as load_rows gives them; their order does not matter."""
    return pandas.DataFrame(list(map(vars, rows)), columns=[f for f in Row.__dataclass_fields__])
