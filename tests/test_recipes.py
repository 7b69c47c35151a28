import dataclasses
import json
import math

import numpy as np
import pytest

import csq_mini as csq
from csq_mini import Recipe

BAD = {
    "target": ["two", math.nan, math.inf, -1, True], "seed": [-1, 1.5, "0", None, True],
    "planes": [0, 9, True, 2.0, "8", None], "skip": ["fc"],
    "search_epochs": [-1, 2.0, None], "finetune_epochs": [-1, "3"],
    "batch_size": [0, 2.5], "lr": [-0.1, math.nan, math.inf, None, True], "logit_lr": [-1, math.nan, "1"],
    "momentum": [-0.1, math.nan], "weight_decay": [-1e-4, math.inf], "warmup_epochs": [-1, math.nan],
    "strength": [-1, math.nan], "floor": [-1, 0.5, True], "beta_start": [0, -1, math.nan, math.inf],
    "beta_end": [0, math.nan, math.inf], "recalibration_batches": [-1, 1.0], "checkpoint_steps": [0, -5],
    "masks": ["ordred", None, 0, ["ordered"]], "optimizer": ["sgdm", None, 1], "hold": [1, None],
    "growth": [1, None], "weighted": [0, "no"], "one_rate": [1, None], "activation_bits": [0, 9, True, 2.0, "4"],
}  # fmt: skip


@pytest.mark.parametrize("name, value", [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_refused_with_its_field_and_itself(name, value):
    word = {"beta_start": "beta_start|temperature", "beta_end": "beta_end|temperature",
            "activation_bits": "activation.bits"}.get(name, name)
    with pytest.raises(ValueError, match=f"({word}).*{value!r}"):
        Recipe(**{name: value})


def test_every_field_has_bad_values_above():
    assert set(BAD) == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize(
    "make", [lambda **f: Recipe(**f), lambda **f: Recipe().replace(**f), lambda **f: csq.recipes.get("digits", **f)]
)
def test_an_unknown_field_names_near_ones(make):
    with pytest.raises(TypeError, match="unknown Recipe field 'serch_epochs'; did you mean search_epochs"):
        make(serch_epochs=3)
    with pytest.raises(TypeError, match="unknown Recipe field 'zzz'; there are: .*seed"):
        make(zzz=1)


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="search_epochs and finetune_epochs are both 0"):
        Recipe(search_epochs=0, finetune_epochs=0)


def test_a_recipe_goes_through_json_and_back():
    recipe = csq.recipes.get("digits", target=3.5, skip=("0.*", "fc"), logit_lr=2)
    assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_replace_leaves_the_original():
    recipe = Recipe(target=3.0)
    assert recipe.replace(seed=4) == Recipe(target=3.0, seed=4) and recipe.seed == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 1


@pytest.mark.parametrize("target", [None, 0, 1, 2.5, 8])
def test_targets_are_numbers_or_none(target):
    assert Recipe(target=target).target == target


def test_every_field_is_explained():
    assert all(field.name in Recipe.__doc__ for field in dataclasses.fields(Recipe))


def test_numbers_of_numpy_are_numbers():
    recipe = Recipe(seed=np.int64(3), target=np.float32(2.5), lr=np.float64(0.1), planes=np.int32(4))
    assert json.loads(json.dumps(recipe.to_dict())) == {**recipe.to_dict(), "skip": []}
    assert (recipe.seed, recipe.target, recipe.lr, recipe.planes) == (3, 2.5, 0.1, 4)
