import pytest
import torch
from conftest import few_digits

from csq_mini.data import Data, batches, digits, training_batch

FOLDS = [digits(fold) for fold in range(5)]


def keys(x):
    return [bytes((image.flatten() * 8 + 8).to(torch.uint8).tolist()) for image in x]


def test_digits_are_scaled_to_one_and_shaped_as_images():
    for x, y in (FOLDS[0].train, FOLDS[0].valid, FOLDS[0].test):
        assert x.shape[1:] == (1, 8, 8) and x.dtype == torch.float32 and y.dtype == torch.int64
        assert x.min() >= -1 and x.max() <= 1 and torch.equal((x + 1) * 8, ((x + 1) * 8).round())
    assert FOLDS[0].train[0].min() == -1 and FOLDS[0].train[0].max() == 1


@pytest.mark.parametrize("data", FOLDS)
def test_the_splits_of_a_fold_share_no_image_and_hold_all(data):
    splits = [set(keys(x)) for x, _ in (data.train, data.valid, data.test)]
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]
    assert sum(len(x) for x, _ in (data.train, data.valid, data.test)) == 1797
    assert len(data.valid[0]) == pytest.approx((1797 - len(data.test[0])) / 10, abs=1)


def test_every_image_is_tested_once_over_the_folds():
    tested = [key for data in FOLDS for key in keys(data.test[0])]
    assert len(tested) == len(set(tested)) == 1797


@pytest.mark.parametrize("data", FOLDS)
def test_the_splits_are_stratified(data):
    for _, y in (data.train, data.valid, data.test):
        counts = y.bincount(minlength=10)
        assert (counts - len(y) / 10).abs().max() <= 0.012 * len(y) + 1


def test_the_split_is_the_same_every_time_and_another_for_another_seed():
    again, other = digits(2), digits(2, seed=1)
    assert torch.equal(again.train[0], FOLDS[2].train[0]) and torch.equal(again.valid[1], FOLDS[2].valid[1])
    assert not torch.equal(other.test[0], FOLDS[2].test[0][: len(other.test[0])])


@pytest.mark.parametrize("options", [{"fold": 5}, {"fold": -1}, {"folds": 1}, {"folds": 101}, {"fold": 2, "folds": 2}])
def test_a_fold_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match=rf"fold.*got fold {options.get('fold', 0)} of {options.get('folds', 5)}"):
        digits(**options)


@pytest.mark.parametrize("x, y", [(0, 0), (3, 2), (2, 3)])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_an_empty_or_uneven_split_is_refused(split, x, y):
    good = {name: (torch.zeros(4, 1), torch.zeros(4)) for name in ("train", "valid", "test")}
    with pytest.raises(ValueError, match=f"mine: {split} has {x} inputs and {y} targets"):
        Data("mine", **{**good, split: (torch.zeros(x, 1), torch.zeros(y))})


def test_batches_go_through_a_split_once_and_in_order():
    split = torch.arange(10), torch.arange(10) + 5
    parts = list(batches(split, 4))
    assert [len(x) for x, _ in parts] == [4, 4, 2]
    assert torch.equal(torch.cat([x for x, _ in parts]), split[0]) and torch.equal(
        torch.cat([y for _, y in parts]), split[1]
    )


def numbered(n, augment=None):
    split = (torch.arange(n).float().view(n, 1), torch.arange(n))
    return Data("numbers", split, split, split, augment)


def test_an_epoch_of_training_batches_shows_each_image_once_and_leaves_the_remainder():
    data = numbered(23)
    for epoch in range(3):
        seen = [int(i) for step in range(4) for i in training_batch(data, 5, 0, 4 * epoch + step)[1]]
        assert len(seen) == len(set(seen)) == 20


def test_the_order_changes_with_epoch_and_seed_and_nothing_else():
    data = numbered(40)
    torch.manual_seed(1)
    first = training_batch(data, 40, 3, 0)[1]
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(training_batch(data, 40, 3, 0)[1], first)
    orders = [training_batch(data, 40, seed, step)[1] for seed in range(4) for step in range(4)]
    assert len({tuple(o.tolist()) for o in orders}) == 16
    assert not torch.equal(torch.get_rng_state(), state)  # set above, and not touched by drawing batches


def test_drawing_a_batch_leaves_the_global_random_numbers_alone():
    state = torch.get_rng_state()
    training_batch(numbered(9, lambda x, g: x + torch.rand(x.shape, generator=g)), 3, 0, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_augmentation_draws_anew_each_step_and_repeatably():
    data = numbered(8, lambda x, g: x + torch.rand(x.shape, generator=g))
    plain = numbered(8)
    noise = [training_batch(data, 8, 0, s)[0] - training_batch(plain, 8, 0, s)[0] for s in (0, 1, 0)]
    assert torch.equal(noise[0], noise[2]) and not torch.equal(noise[0].sort(0)[0], noise[1].sort(0)[0])


def test_a_batch_larger_than_the_data_is_the_data():
    x, y = training_batch(numbered(6), 100, 0, 3)
    assert sorted(y.tolist()) == list(range(6)) and torch.equal(x.flatten().long(), y)


def test_moving_keeps_name_and_augmentation():
    data = few_digits(8, 4, 4, augment=lambda x, g: x)
    moved = data.to("cpu")
    assert (moved.name, moved.augment) == (data.name, data.augment) and torch.equal(moved.test[0], data.test[0])
