"""Folders of images, as ImageNet has them: decoded once, then read as arrays mapped into memory."""

import json
import os
import re

import numpy as np
import pytest
import torch
from archives import tree

import csq_mini as csq
from csq_mini import cli
from csq_mini.activations import PACT
from csq_mini.data import folders

pytestmark = pytest.mark.filterwarnings("error")
MODES = ["RGB", "L", "RGBA", "P", "CMYK", "RGB"]


def make_folder(folder, classes=("ant", "bee", "cat"), counts=(("train", 6), ("val", 3))):
    from PIL import Image

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


def as_bytes(x):
    return [bytes(image.flatten().tolist()) for image in x]


def run(animals, **options):
    return folders.decode(animals, name="animals", side=16, progress=False, **options)


def decoded(path, side=16, crop=None):
    from PIL import Image
    from torchvision.transforms import functional as TF

    with Image.open(path) as image:
        return TF.center_crop(TF.pil_to_tensor(TF.resize(image.convert("RGB"), [side])), [crop or side])


def load(**options):
    return csq.data.image_folder(name="animals", side=16, **{"crop": 12, "valid": 6, **options})


def test_a_folder_is_decoded_whole_and_once(animals, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "BLOCK", 5)
    assert "18 train images, 9 val images, 3 classes" in run(animals)
    assert [p.name for p in (tmp_path / "sets").iterdir()] == ["animals-16"]
    data = load(crop=16)
    for part, splits in (("train", (data.train, data.valid)), ("val", (data.test,))):
        there = {bytes(decoded(path).flatten().tolist()): i for i, name in enumerate(("ant", "bee", "cat"))
                 for path in (animals / part / name).iterdir() if path.suffix != ".txt"}  # fmt: skip
        mine = {key: int(y) for x, labels in splits for key, y in zip(as_bytes(x), labels)}
        assert mine == there
    before = tree(tmp_path / "sets")
    assert "is there already and whole" in run(animals) and tree(tmp_path / "sets") == before


def test_a_decoded_folder_is_a_data_set(animals):
    from torchvision.transforms import functional as TF

    run(animals)
    data = load()
    assert (data.name, data.classes, data.streamed) == ("animals-16", 3, False)
    assert [len(y) for _, y in (data.train, data.valid, data.test)] == [12, 6, 9]
    assert [set(y.bincount().tolist()) for _, y in (data.train, data.valid, data.test)] == [{4}, {2}, {3}]
    x, y = data.training_batch(5, 0, 0)
    assert x.shape == (5, 3, 12, 12) and x.dtype == torch.float32 and y.shape == (5,)
    [(x, y)] = data.batches("test", 9)
    paths = [p for name in ("ant", "bee", "cat") for p in (animals / "val" / name).iterdir()]
    expected = TF.normalize(torch.stack([decoded(p, crop=12) for p in paths]) / 255,
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
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: type("", (), {"free": 27 * 16 * 16 * 3 - 1}))
    with pytest.raises(OSError, match="the arrays take 0.0 GB, and .* has 0.0 GB free: give another --root"):
        run(animals)
    assert not (tmp_path / "sets").exists()


@pytest.mark.parametrize("options, message", [({"side": 0}, "side must be a whole number of at least 1, got 0"),
                                              ({"name": "a/b"}, "name must be a plain name"),
                                              ({"name": "../../x"}, "name must be a plain name"),
                                              ({"name": ""}, "name must be a plain name")])  # fmt: skip
def test_a_bad_name_or_side_is_refused(options, message, animals):
    for call in (lambda: folders.decode(animals, progress=False, **options), lambda: csq.data.image_folder(**options)):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("crop", [0, 17])
def test_a_crop_larger_than_the_images_is_refused(crop, animals):
    run(animals)
    with pytest.raises(ValueError, match=f"crop must be a whole number from 1 to 16, got {crop}: the images have 16"):
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
        (lambda f: rewrite(f, lambda a: a.astype(float)), ValueError, "val_labels.npy is of type float64, not int64"),
        (lambda f: np.save(f, np.array([print] * 9)), ValueError, "val_labels.npy is damaged"),  # a pickle
        (lambda f: (f.unlink(), os.mkfifo(f)), ValueError, "val_labels.npy is damaged"),
    ],
    "classes.json": [
        (lambda f: f.write_text("{"), ValueError, "classes.json is damaged"),
        (lambda f: f.write_text("[" * 9999), ValueError, "classes.json is damaged"),
        (lambda f: f.write_text("3"), ValueError, "classes.json is no list of names"),
    ],
}


@pytest.mark.parametrize("file, i", [(file, i) for file, cases in SPOILT.items() for i in range(len(cases))])
def test_arrays_that_do_not_fit_are_named_with_what_to_do(file, i, animals, tmp_path, capsys):
    run(animals)
    spoil, kind, message = SPOILT[file][i]
    spoil(tmp_path / "sets" / "animals-16" / file)
    remedy = "run: python data_scripts/image_folder.py --from DIR --name animals --side 16"
    with pytest.raises(kind, match=rf"animals-16 in .*sets is not whole: .*{message}.*; {remedy}"):
        load()
    assert cli.main(["data"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "animals-16" in line]
    assert "damaged" in line and re.search(message, line) and line.endswith(remedy)


def test_a_folder_not_decoded_yet_is_named_with_what_to_do(animals, tmp_path, capsys):
    remedy = f"python data_scripts/image_folder.py --from DIR --root {tmp_path}/other --name animals --side 16"
    with pytest.raises(FileNotFoundError, match=f"no animals-16 in .*other; run: {remedy}"):
        load(root=tmp_path / "other")
    run(animals)
    assert cli.main(["data"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "animals-16" in line]
    classes = json.loads((tmp_path / "sets/animals-16/classes.json").read_text())
    assert "whole" in line and classes == ["ant", "bee", "cat"]


@pytest.mark.parametrize("name", ["resnet18-imagenet", "resnet50-imagenet"])
def test_the_imagenet_recipe_trains_on_a_small_folder(name, animals):
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    run(animals)
    data = load(crop=16, valid=2)
    # torchvision's own class and blocks, one block a stage: test_models.py has the networks whole.
    basic = name.startswith("resnet18")  # whose width cannot be changed
    model = ResNet(BasicBlock if basic else Bottleneck, [1, 1, 1, 1], data.classes, width_per_group=64 if basic else 4)
    recipe = csq.recipes.get(name, search_epochs=1, finetune_epochs=1, batch_size=8, planes=2, target=1.5,
                             recalibration_batches=1)  # fmt: skip
    with pytest.warns(UserWarning, match="the search ended at"):  # so short a search leaves much to the freeze
        result = csq.fit(model, data, recipe, progress=False, device="cpu")
    assert result.report.total.paper_bits <= 1.5 and recipe.activation_bits == 4
    kinds = {type(m) for m in result.model.modules()}
    assert PACT in kinds and torch.nn.ReLU not in kinds
    names = set(csq.integers(result.model))
    assert {"conv1", "fc", "layer2.0.downsample.0"} <= names  # first, last and shortcut are quantized and counted
