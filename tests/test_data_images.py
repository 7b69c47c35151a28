"""Data sets of images: what the files hold, what happens to a batch, and what is said of files that are not whole."""

import json
import re

import numpy as np
import pytest
import torch
from archives import CLASS, FOLDER, damage, publish, put, tree
from PIL import Image
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.transforms import functional as TF

import csq_mini as csq
from csq_mini import cli
from csq_mini.activations import PACT
from csq_mini.data import decode
from csq_mini.data.transforms import CropFlip, Normalise

pytestmark = pytest.mark.filterwarnings("error")
SIZE = {"cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "fashion_mnist": (1, 28, 28)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def as_bytes(x):
    return [bytes(image.flatten().tolist()) for image in x]


@pytest.fixture
def sets(monkeypatch, tmp_path):
    """A data root with the three published sets in small."""
    for name in CLASS:
        put(tmp_path, name, publish(monkeypatch, name)[0])
    monkeypatch.setenv("CSQ_DATA", str(tmp_path))
    return tmp_path


def torchvision_split(root, name, train):
    if name == "fashion_mnist":  # torchvision reads it unpacked
        from torchvision.datasets.utils import extract_archive

        for file in (root / FOLDER[name]).glob("*.gz"):
            extract_archive(file, root / FOLDER[name])
    split = CLASS[name](root, train=train, download=False)
    x = torch.as_tensor(split.data)
    return (x.permute(0, 3, 1, 2) if x.ndim == 4 else x.unsqueeze(1)), torch.as_tensor(split.targets)


# The published sets


@pytest.mark.parametrize("name", CLASS)
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


@pytest.mark.parametrize("name", CLASS)
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
    ({"valid": 0}, "valid must lie in 1..99, of 100 training images, got 0"),
    ({"valid": 100}, "valid must lie in 1..99, of 100 training images, got 100"),
    ({}, "valid must lie in 1..99, of 100 training images, got 1000"),
    ({"valid": 5, "limit": 0}, "limit must be None or at least 1 image, got 0"),
    ({"valid": 5, "limit": -3}, "limit must be None or at least 1 image, got -3"),
])  # fmt: skip
def test_sizes_out_of_range_are_refused(options, message, sets):
    with pytest.raises(ValueError, match=re.escape(message)):
        csq.data.cifar10(**options)


@pytest.mark.parametrize("name", CLASS)
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
    for name in CLASS:
        data = getattr(csq.data, name)(valid=20)
        (x, y), (there_x, there_y) = data.training_batch(40, 0, 1), data.to("cuda").training_batch(40, 0, 1)
        assert torch.allclose(x, there_x.cpu(), atol=1e-5) and torch.equal(y, there_y.cpu())


@pytest.mark.parametrize("crop", [None, 21, 20, 18, 7])
def test_normalising_does_what_torchvision_does(crop):
    x = torch.randint(0, 256, (4, 3, 21, 21), dtype=torch.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    out = Normalise(mean, std, crop)(x)
    expected = TF.normalize((TF.center_crop(x, [crop]) if crop else x) / 255, mean, std)
    assert out.dtype == torch.float32 and out.is_contiguous(memory_format=torch.channels_last)
    assert out.shape == expected.shape and torch.allclose(out, expected, atol=1e-5)


# Folders of images

MODES = ["RGB", "L", "RGBA", "P", "CMYK", "RGB"]


def make_folder(folder, classes=("ant", "bee", "cat"), counts=(("train", 6), ("val", 3))):
    random = np.random.RandomState(0)
    for part, count in counts:
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                height, width = random.randint(20, 60, 2)
                coarse = random.randint(0, 256, (4, 4, 3), dtype=np.uint8)
                image = Image.fromarray(coarse).resize((int(width), int(height))).convert(MODES[i])
                image.save(folder / part / name / f"{i}{'.JPEG' if MODES[i] in ('L', 'CMYK') else '.png'}")
    (folder / "train" / classes[0] / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def animals(tmp_path, monkeypatch):
    monkeypatch.setenv("CSQ_DATA", str(tmp_path / "sets"))
    return make_folder(tmp_path / "animals")


def run(animals, **options):
    return decode.decode(animals, name="animals", side=16, progress=False, **options)


def evaluated(path, side=16, crop=None):
    with Image.open(path) as image:
        return TF.center_crop(TF.pil_to_tensor(TF.resize(image.convert("RGB"), [side])), [crop or side])


def load(**options):
    return csq.data.image_folder(name="animals", side=16, **{"crop": 12, "valid": 6, **options})


def test_a_folder_is_decoded_whole_and_once(animals, tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "BLOCK", 5)
    assert "18 train images, 9 val images, 3 classes" in run(animals)
    assert [p.name for p in (tmp_path / "sets").iterdir()] == ["animals-16"]
    data = load(crop=16)
    for part, splits in (("train", (data.train, data.valid)), ("val", (data.test,))):
        there = {bytes(evaluated(path).flatten().tolist()): i for i, name in enumerate(("ant", "bee", "cat"))
                 for path in (animals / part / name).iterdir() if path.suffix != ".txt"}  # fmt: skip
        mine = {key: int(y) for x, labels in splits for key, y in zip(as_bytes(x), labels)}
        assert mine == there
    before = tree(tmp_path / "sets")
    assert "is there already and whole" in run(animals) and tree(tmp_path / "sets") == before


def test_a_decoded_folder_is_a_data_set(animals):
    run(animals)
    data = load()
    assert (data.name, data.classes, data.streamed) == ("animals-16", 3, False)
    assert [len(y) for _, y in (data.train, data.valid, data.test)] == [12, 6, 9]
    assert [set(y.bincount().tolist()) for _, y in (data.train, data.valid, data.test)] == [{4}, {2}, {3}]
    x, y = data.training_batch(5, 0, 0)
    assert x.shape == (5, 3, 12, 12) and x.dtype == torch.float32 and y.shape == (5,)
    [(x, y)] = data.batches("test", 9)
    paths = [p for name in ("ant", "bee", "cat") for p in (animals / "val" / name).iterdir()]
    expected = TF.normalize(torch.stack([evaluated(p, crop=12) for p in paths]) / 255,
                            (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # fmt: skip
    assert torch.allclose(x.flatten(1).sort(0)[0], expected.flatten(1).sort(0)[0], atol=1e-5)
    assert len(load(valid=None).valid[1]) == 1 and load(limit=5).name == "animals-16[5]"


def test_a_set_too_large_for_the_device_is_streamed_and_gives_the_same_batches(animals):
    run(animals)
    streamed, resident = load(resident_gb=1e-6), load()
    assert streamed.streamed and not resident.streamed
    assert streamed.to("meta").train[0].device.type == "cpu"
    for step in range(4):
        assert torch.equal(streamed.training_batch(5, 0, step)[0], resident.to("cpu").training_batch(5, 0, step)[0])


def no_train(folder):
    (folder / "train").rename(folder / "training")


def class_missing_in_val(folder):
    (folder / "val" / "bee").rename(folder / "bee")


def class_missing_in_train(folder):
    (folder / "train" / "bee").rename(folder / "bee")


def empty_class(folder):
    for path in (folder / "train" / "cat").iterdir():
        path.unlink()


def cut_image(folder):
    path = folder / "val" / "cat" / "1.JPEG"
    path.write_bytes(path.read_bytes()[:-300])


def no_image(folder):
    (folder / "train" / "ant" / "2.png").write_text("not an image")


BAD = {
    no_train: (FileNotFoundError, r"no folder .*train: .* must hold train/<class>/ and val/<class>/"),
    class_missing_in_val: (FileNotFoundError, r"no image of the classes bee in .*val"),
    class_missing_in_train: (FileNotFoundError, r"val has classes that .*train lacks: bee"),
    empty_class: (FileNotFoundError, r"no image of the classes cat in .*train"),
    cut_image: (ValueError, r"cannot read .*val/cat/1.JPEG \(.*[Tt]runcated.*\): replace or delete it"),
    no_image: (ValueError, r"cannot read .*train/ant/2.png \(.*\): replace or delete it"),
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda f: f.__name__)
@pytest.mark.parametrize("before", [{}, {"train_images.npy": b"cut"}])
def test_a_folder_that_is_not_whole_is_refused_and_nothing_changes(spoil, before, animals, tmp_path):
    put_there = tmp_path / "sets" / "animals-16"
    put_there.mkdir(parents=True)
    for name, content in before.items():
        (put_there / name).write_bytes(content)
    spoil(animals)
    kind, message = BAD[spoil]
    with pytest.raises(kind, match=message):
        run(animals)
    assert tree(tmp_path / "sets") == {f"animals-16/{k}": v for k, v in before.items()}
    assert [p.name for p in (tmp_path / "sets").iterdir()] == ["animals-16"]


def test_arrays_that_are_not_whole_are_replaced(animals, tmp_path):
    run(animals)
    file = tmp_path / "sets" / "animals-16" / "train_images.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert "18 train images" in run(animals) and file.read_bytes() == whole


def test_a_disk_too_full_is_noticed_before_anything_is_decoded(animals, monkeypatch, tmp_path):
    monkeypatch.setattr(decode.shutil, "disk_usage", lambda path: type("", (), {"free": 27 * 16 * 16 * 3 - 1}))
    with pytest.raises(OSError, match="the arrays take 0.0 GB, and .* has 0.0 GB free: give another --root"):
        run(animals)
    assert not (tmp_path / "sets").exists()


@pytest.mark.parametrize("options, message", [({"side": 0}, "side must be at least 1 pixel, got 0"),
                                              ({"name": "a/b"}, "name must be a plain name"),
                                              ({"name": ""}, "name must be a plain name")])  # fmt: skip
def test_a_bad_name_or_side_is_refused(options, message, animals):
    with pytest.raises(ValueError, match=message):
        decode.decode(animals, progress=False, **options)


@pytest.mark.parametrize("crop", [0, 17])
def test_a_crop_larger_than_the_images_is_refused(crop, animals):
    run(animals)
    with pytest.raises(ValueError, match=rf"crop must lie in 1..16, the side of the images, got {crop}"):
        load(crop=crop)


def rewrite(file, change):
    np.save(file, change(np.load(file)))


SPOILT = {
    "train_images.npy": [
        (lambda f: f.write_bytes(f.read_bytes()[:-1]), ValueError, "train_images.npy is damaged"),
        (lambda f: f.unlink(), FileNotFoundError, "train_images.npy is missing"),
        (lambda f: rewrite(f, lambda a: a[:, :8]), ValueError, r"\[18, 8, 16, 3\] uint8, not \[images, 16, 16, 3\]"),
        (lambda f: rewrite(f, lambda a: a.astype(np.float32)), ValueError, r"float32, not .* uint8"),
    ],
    "val_labels.npy": [
        (lambda f: rewrite(f, lambda a: a[1:]), ValueError, r"val_labels.npy is of shape \[8\] for 9 images"),
        (lambda f: rewrite(f, lambda a: a + 1), ValueError, "val_labels.npy is 1 to 3 for 3 classes"),
    ],
    "classes.json": [(lambda f: f.write_text("{"), ValueError, "classes.json is damaged")],
}


@pytest.mark.parametrize("file, i", [(file, i) for file, cases in SPOILT.items() for i in range(len(cases))])
def test_arrays_that_do_not_fit_are_named_with_what_to_do(file, i, animals, tmp_path, capsys):
    run(animals)
    spoil, kind, message = SPOILT[file][i]
    spoil(tmp_path / "sets" / "animals-16" / file)
    remedy = "run: python data_scripts/image_folder.py --from DIR --name animals --side 16"
    with pytest.raises(kind, match=rf"animals-16 is not whole: .*{message}.*; {remedy}"):
        load()
    assert cli.main(["data"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "animals-16" in line]
    assert "damaged" in line and re.search(message, line)


def test_a_folder_not_decoded_yet_is_named_with_what_to_do(animals, tmp_path, capsys):
    remedy = f"python data_scripts/image_folder.py --from DIR --root {tmp_path}/other --name animals --side 16"
    with pytest.raises(FileNotFoundError, match=f"no folder .*other/animals-16; run: {remedy}"):
        load(root=tmp_path / "other")
    run(animals)
    assert cli.main(["data"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "animals-16" in line]
    classes = json.loads((tmp_path / "sets/animals-16/classes.json").read_text())
    assert "whole" in line and classes == ["ant", "bee", "cat"]


@pytest.mark.parametrize("name", ["resnet18-imagenet", "resnet50-imagenet"])
def test_the_imagenet_recipe_trains_on_a_small_folder(name, animals):
    run(animals)
    data = load(crop=16, valid=2)
    # torchvision's own class and blocks, one block a stage: test_models.py has the networks whole.
    basic = name.startswith("resnet18")  # whose width cannot be changed
    model = ResNet(BasicBlock if basic else Bottleneck, [1, 1, 1, 1], data.classes, width_per_group=64 if basic else 4)
    recipe = csq.recipes.get(name, search_epochs=1, finetune_epochs=1, batch_size=8, planes=2, target=1.5,
                             recalibration_batches=1)  # fmt: skip
    result = csq.fit(model, data, recipe, progress=False, device="cpu")
    assert result.report.total.paper_bits <= 1.5 and recipe.activation_bits == 4
    kinds = {type(m) for m in result.model.modules()}
    assert PACT in kinds and torch.nn.ReLU not in kinds
    names = set(csq.integers(result.model))
    assert {"conv1", "fc", "layer2.0.downsample.0"} <= names  # first, last and shortcut are quantized and counted
