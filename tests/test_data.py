import pytest
import torch
from conftest import few_digits
from hypothesis import given
from hypothesis import strategies as st

import csq_mini as csq
from csq_mini.data import Data, digits
from csq_mini.data.dataset import CropFlip, Normalise, stratified_order


@pytest.fixture(scope="module")
def folds():
    return [digits(fold) for fold in range(5)]


def keys(x):
    return [bytes((image.flatten() * 8 + 8).to(torch.uint8).tolist()) for image in x]


def test_digits_are_scaled_to_one_and_shaped_as_images(folds):
    for x, y in (folds[0].train, folds[0].valid, folds[0].test):
        assert x.shape[1:] == (1, 8, 8) and x.dtype == torch.float32 and y.dtype == torch.int64
        assert x.min() >= -1 and x.max() <= 1 and torch.equal((x + 1) * 8, ((x + 1) * 8).round())
    assert folds[0].train[0].min() == -1 and folds[0].train[0].max() == 1


@pytest.mark.parametrize("fold", range(5))
def test_the_splits_of_a_fold_share_no_image_and_hold_all(fold, folds):
    data = folds[fold]
    splits = [set(keys(x)) for x, _ in (data.train, data.valid, data.test)]
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]
    assert sum(len(x) for x, _ in (data.train, data.valid, data.test)) == 1797
    assert len(data.valid[0]) == pytest.approx((1797 - len(data.test[0])) / 10, abs=1)


def test_every_image_is_tested_once_over_the_folds(folds):
    tested = [key for data in folds for key in keys(data.test[0])]
    assert len(tested) == len(set(tested)) == 1797


@pytest.mark.parametrize("fold", range(5))
def test_the_splits_are_stratified(fold, folds):
    for _, y in (folds[fold].train, folds[fold].valid, folds[fold].test):
        counts = y.bincount(minlength=10)
        assert (counts - len(y) / 10).abs().max() <= 0.012 * len(y) + 1


def test_the_split_is_the_same_every_time_and_another_for_another_seed(folds):
    again, other = digits(2), digits(2, seed=1)
    assert torch.equal(again.train[0], folds[2].train[0]) and torch.equal(again.valid[1], folds[2].valid[1])
    assert not torch.equal(other.test[0], folds[2].test[0][: len(other.test[0])])


@pytest.mark.parametrize("options, message", [
    ({"fold": 5}, "fold must be a whole number from 0 to 4, got 5"),
    ({"fold": -1}, "fold must be a whole number from 0 to 4, got -1"),
    ({"fold": 2, "folds": 2}, "fold must be a whole number from 0 to 1, got 2"),
    ({"folds": 1}, "folds must be a whole number from 2 to 100, got 1"),
    ({"folds": 101}, "folds must be a whole number from 2 to 100, got 101"),
    ({"folds": 2.5}, "folds must be a whole number from 2 to 100, got 2.5"),
])  # fmt: skip
def test_a_fold_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        digits(**options)


@pytest.mark.parametrize("x, y", [(0, 0), (3, 2), (2, 3)])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_an_empty_or_uneven_split_is_refused(split, x, y):
    good = {name: (torch.zeros(4, 1), torch.zeros(4)) for name in ("train", "valid", "test")}
    with pytest.raises(ValueError, match=f"mine: {split} has {x} inputs and {y} targets"):
        Data("mine", **{**good, split: (torch.zeros(x, 1), torch.zeros(y))})


@pytest.mark.parametrize("split", ["valid", "test"])
def test_inputs_of_another_shape_are_refused(split):
    good = {name: (torch.zeros(4, 3, 8, 8), torch.zeros(4)) for name in ("train", "valid", "test")}
    with pytest.raises(ValueError, match=rf"mine: {split} has inputs of shape \[3, 9, 8\], but train of .*\[3, 8, 8\]"):
        Data("mine", **{**good, split: (torch.zeros(4, 3, 9, 8), torch.zeros(4))})


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("targets", [[0, 3, 1], [0, -1, 2]])
def test_targets_that_are_no_class_are_refused(split, targets):
    good = {name: (torch.zeros(3, 1), torch.tensor([2, 0, 1])) for name in ("train", "valid", "test")}
    Data("mine", **good, classes=3)
    wrong = {**good, split: (torch.zeros(3, 1), torch.tensor(targets))}
    Data("mine", **wrong)  # targets of a regression may be any
    with pytest.raises(ValueError, match=f"mine: {split} has targets {min(targets)} to {max(targets)}, but classes=3"):
        Data("mine", **wrong, classes=3)


def numbered(n, augment=None, **options):
    split = (torch.arange(n).float().view(n, 1), torch.arange(n))
    return Data("numbers", split, split, split, augment, **options)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_batches_go_through_a_split_once_and_in_order(split):
    data = Data("mine", **{name: ((x := torch.arange(10) + 100 * i).view(10, 1), x + 5)
                           for i, name in enumerate(("train", "valid", "test"))})  # fmt: skip
    parts = list(data.batches(split, 4))
    assert [len(x) for x, _ in parts] == [4, 4, 2]
    assert torch.equal(torch.cat([x for x, _ in parts]), getattr(data, split)[0])
    assert torch.equal(torch.cat([y for _, y in parts]), getattr(data, split)[1])


def test_a_split_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="unknown split 'tests'; did you mean test"):
        numbered(4).batches("tests", 2)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_nothing_is_refused(size):
    with pytest.raises(ValueError, match=f"batch size must be a whole number of at least 1, got {size}"):
        numbered(4).batches("train", size)
    with pytest.raises(ValueError, match=f"batch size must be a whole number of at least 1, got {size}"):
        numbered(4).training_batch(size, 0, 0)


def test_an_epoch_of_training_batches_shows_each_image_once_and_leaves_the_remainder():
    data = numbered(23)
    for epoch in range(3):
        seen = [int(i) for step in range(4) for i in data.training_batch(5, 0, 4 * epoch + step)[1]]
        assert len(seen) == len(set(seen)) == 20


def test_the_order_is_the_one_that_published_results_were_trained_in():
    order = [numbered(12).training_batch(5, seed=3, step=step)[1].tolist() for step in range(4)]
    assert order == [[11, 7, 1, 6, 8], [10, 4, 5, 2, 3], [3, 6, 4, 9, 0], [10, 1, 2, 7, 8]]


def test_the_order_of_an_epoch_is_drawn_once(monkeypatch):
    drawn, real = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *a, **k: drawn.append(a) or real(*a, **k))
    for step in range(8):
        numbered(1201).training_batch(300, 0, step)
    assert drawn == [(1201,), (1201,)]


def test_the_order_changes_with_epoch_and_seed_and_nothing_else():
    data = numbered(40)
    torch.manual_seed(1)
    first = data.training_batch(40, 3, 0)[1]
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(data.training_batch(40, 3, 0)[1], first)
    orders = [data.training_batch(40, seed, step)[1] for seed in range(4) for step in range(4)]
    assert len({tuple(o.tolist()) for o in orders}) == 16
    assert not torch.equal(torch.get_rng_state(), state)  # set above, and not touched by drawing batches


def add_noise(x, generator):
    return x + torch.rand(x.shape, generator=generator)


def test_drawing_a_batch_leaves_the_global_random_numbers_alone():
    state = torch.get_rng_state()
    numbered(9, add_noise).training_batch(3, 0, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_augmentation_draws_anew_each_step_and_seed_and_repeatably():
    def noise(seed, step):
        x, y = numbered(8, add_noise).training_batch(8, seed, step)
        return (x.flatten() - y)[y.argsort()]

    drawn = [noise(*key) for key in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert torch.equal(drawn[0], drawn[3])
    assert len({tuple(d.sort()[0].mul(1e4).round().tolist()) for d in drawn}) == 3


def test_only_training_batches_are_augmented_and_all_are_prepared():
    data = numbered(6, lambda x, g: x + 0.5, prepare=lambda x: x * 2)
    x, y = data.training_batch(4, 0, 0)
    assert torch.equal(x.flatten(), (y + 0.5) * 2)
    for split in ("train", "valid", "test"):
        assert all(torch.equal(x.flatten(), y * 2.0) for x, y in data.batches(split, 4))


def test_a_batch_larger_than_the_data_is_the_data():
    x, y = numbered(6).training_batch(100, 0, 3)
    assert sorted(y.tolist()) == list(range(6)) and torch.equal(x.flatten().long(), y)


def photographs(augment):
    x = torch.randint(0, 256, (40, 3, 12, 12), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    split = (x, torch.arange(40) % 10)
    return Data("photographs", split, split, split, augment, Normalise((0.4,) * 3, (0.2,) * 3), 10)


@pytest.mark.parametrize("augment", [None, CropFlip(12, pad=2), add_noise], ids=["nothing", "crop and flip", "noise"])
def test_the_shares_of_a_batch_are_those_of_the_whole_batch_to_the_bit(augment):
    data = photographs(augment)
    for step in range(4):
        x, y = data.training_batch(15, 7, step)
        for rank in range(3):
            share_x, share_y = data.training_batch(15, 7, step, slice(rank, None, 3))
            assert torch.equal(share_x, x[rank::3]) and torch.equal(share_y, y[rank::3])


def test_a_share_crops_its_own_images_alone(monkeypatch):
    cropped, apply = [], CropFlip.apply
    monkeypatch.setattr(CropFlip, "apply", lambda self, x, drawn: cropped.append(len(x)) or apply(self, x, drawn))
    photographs(CropFlip(12, pad=2)).training_batch(15, 7, 0, slice(1, None, 3))
    assert cropped == [5]


def test_another_augmentation_gets_the_whole_batch():
    seen = []
    data = photographs(lambda x, generator: seen.append(len(x)) or x)
    assert len(data.training_batch(15, 7, 0, slice(1, None, 3))[1]) == 5 and seen == [15]


def test_moving_keeps_all_but_the_device():
    data = few_digits(8, 4, 4, augment=lambda x, g: x)
    moved = data.to("cpu")
    assert (moved.name, moved.augment) == (data.name, data.augment) and torch.equal(moved.test[0], data.test[0])
    assert moved.device == torch.device("cpu") and data.device is None
    assert moved.train[0] is data.train[0]  # the device holds the data set once
    odd = numbered(4, add_noise, prepare=torch.neg, classes=4, streamed=True).to("cpu")
    assert (odd.augment, odd.prepare, odd.classes, odd.streamed) == (add_noise, torch.neg, 4, True)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_streamed_set_stays_and_its_batches_move(streamed):
    data = numbered(6, lambda x, g: x + 1, streamed=streamed).to("meta")  # a device without values: where, not what
    batches = [data.training_batch(2, 0, 0), *data.batches("valid", 4)] if streamed else data.batches("valid", 4)
    assert {t.device.type for batch in batches for t in batch} == {"meta"}
    assert {t.device.type for split in (data.train, data.valid, data.test) for t in split} == {
        "cpu" if streamed else "meta"
    }


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 3))
def test_every_beginning_of_a_stratified_order_is_stratified(targets, seed):
    targets = torch.tensor(targets)
    order = stratified_order(targets, seed)
    assert sorted(order.tolist()) == list(range(len(targets)))
    share = targets.bincount(minlength=5) / len(targets)
    for n in range(1, len(targets) + 1):
        # a class is never ahead or behind by more than half an image for each class there is
        assert (targets[order[:n]].bincount(minlength=5) - n * share).abs().max() <= 2.5


def test_a_stratified_order_is_random_but_the_same_every_time():
    targets = torch.arange(10).repeat(20)
    orders = [stratified_order(targets, seed).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and orders[0] != sorted(orders[0])
    assert orders[0][:6] == [170, 61, 182, 33, 154, 5]  # the same in every version of NumPy and torch


def test_the_data_root_is_what_is_given_else_csq_data_else_data(monkeypatch, tmp_path):
    monkeypatch.setenv("CSQ_DATA", str(tmp_path))
    assert csq.data.root("mine").name == "mine" and csq.data.root() == tmp_path
    monkeypatch.setenv("CSQ_DATA", "")
    assert str(csq.data.root()) == "data"
    monkeypatch.delenv("CSQ_DATA")
    assert str(csq.data.root()) == "data" and "~" not in str(csq.data.root("~/sets"))


def test_every_data_set_is_found_by_its_name():
    assert set(csq.data.DATA) == {"digits", "mnist", "cifar10", "cifar100", "fashion_mnist", "image_folder"}
    assert all(csq.data.get(name) is getattr(csq.data, name) for name in csq.data.DATA)


def test_batches_are_augmented_on_request_and_the_same_every_time():
    data = numbered(9, lambda x, g: x + torch.rand(x.shape, generator=g))
    plain = torch.cat([x for x, _ in data.batches("train", 4)])
    assert torch.equal(plain, data.train[0])
    first, again, other = (torch.cat([x for x, _ in data.batches("train", 4, seed)]) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    noise = first - plain
    assert ((noise >= 0) & (noise < 1)).all() and len(noise.unique()) > 4  # each batch with numbers of its own
    bare = numbered(9)
    assert torch.equal(torch.cat([x for x, _ in bare.batches("train", 4, 0)]), bare.train[0])
