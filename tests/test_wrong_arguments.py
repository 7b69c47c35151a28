"""Wrong arguments, one after the other: each gets one sentence of our own, and nothing is trained or written."""

import copy
import traceback
from math import inf, nan  # noqa: F401 - the calls use them
from pathlib import Path

import pandas  # noqa: F401
import pytest
import torch
import torch.nn.functional as F  # noqa: F401
from conftest import converted, hardened
from torch import nn

import csq_mini as csq
from csq_mini.data import Data
from csq_mini.data.transforms import CropFlip, Normalise  # noqa: F401

# What a part of the error's text is -> calls that raise it; names are those of ``MAKE`` and of this file.
WRONG = {
    "a model must be a torch.nn.Module, got": """
        csq.convert(None)
        csq.convert("resnet20")
        csq.convert(csq.models.resnet20)
        csq.convert(net.state_dict())
        csq.harden(None)
        csq.harden("model")
        csq.harden({})
        csq.set_temperature(None, 1.0)
        csq.Budget(None, 2.0)
        csq.parameter_groups(None, 0.1)
        csq.integers(None)
        csq.report(None)
        csq.report("model")
        csq.save_packed(None, path)
        csq.load_packed(packed, "model")
        csq.quantize_activations(None, 4)
        csq.recalibrate(None, [x])
        csq.fold_batch_norm(None, x)
        csq.export_onnx(None, x, path)
        csq.evaluate(None, data)
        csq.evaluate("net", data)
        fit(None)
        fit("net")
        fit(nn.Linear)
        fit(net.state_dict())
        csq.Trainer(None, data, short)
    """,
    "must be a whole number": """
        csq.convert(net, 0)
        csq.convert(net, 9)
        csq.convert(net, 2.5)
        csq.convert(net, "8")
        csq.convert(net, None)
        csq.convert(net, True)
        csq.Budget(soft, 2.0, floor=-1)
        csq.Budget(soft, 2.0, floor=9)
        csq.Budget(soft, 2.0, floor=1.5)
        csq.Budget(soft, 2.0, floor=None)
        csq.Budget(soft, 2.0, floor="1")
        csq.Budget(soft, 2.0, floor={"0": "two"})
        csq.quantize_activations(net, 0)
        csq.quantize_activations(net, 9)
        csq.quantize_activations(net, 2.5)
        csq.quantize_activations(net, None)
        csq.quantize_activations(net, "4")
        fit(recipe=short.replace(floor=9))
        csq.Recipe(seed=-1)
        csq.Recipe(seed=2**63)
        csq.Recipe(seed=None)
        csq.Recipe(seed=1.5)
        csq.Recipe(planes=0)
        csq.Recipe(planes=None)
        csq.Recipe(search_epochs=-1)
        csq.Recipe(search_epochs=1.5)
        csq.Recipe(finetune_epochs="3")
        csq.Recipe(batch_size=0)
        csq.Recipe(batch_size=None)
        csq.Recipe(floor=-1)
        csq.Recipe(activation_bits=9)
        csq.Recipe(recalibration_batches=-1)
        csq.Recipe(checkpoint_steps=0)
        csq.models.digits_cnn(0)
        csq.models.digits_cnn(-3)
        csq.models.digits_cnn(2.5)
        csq.models.digits_cnn("10")
        csq.models.digits_cnn(None)
        csq.models.vgg19bn(width=0)
        csq.models.vgg19bn(10, 1.5)
        csq.models.resnet20(num_classes=0)
        csq.models.resnet18(num_classes=-1)
        csq.data.digits(fold=9)
        csq.data.digits(folds=1)
        Data("d", pair, pair, pair, classes=0)
        Data("d", pair, pair, pair, classes="4")
        next(data.batches("test", 0))
        next(data.batches("test", None))
        data.training_batch(0, 0, 0)
        data.training_batch(2, 0, -1)
        data.training_batch(2, -1, 0)
        data.training_batch(2, 0, "1")
        data.training_batch("2", 0, 0)
        CropFlip(0)
        CropFlip(8, pad=-1)
        reproduce(seed=-1)
        reproduce(seed="0")
        reproduce(epochs=-3)
        reproduce(epochs=0)
        reproduce(epochs="3")
        reproduce(epochs=2.5)
        reproduce(activation_bits=9)
    """,
    "matches no layer": """
        csq.convert(net, skip="nothing")
        csq.convert(net, skip=("0", "nothing"))
        csq.Budget(soft, 2.0, floor={"nothing": 2})
        csq.quantize_activations(net, 4, skip="nothing")
        fit(recipe=short.replace(skip=("nothing",)))
    """,
    "nothing to convert": """
        csq.convert(net, skip="*")
        csq.convert(nn.ReLU())
    """,
    "converted already": """
        csq.convert(soft)
        fit(soft)
    """,
    "before wrapping": """
        csq.convert(nn.DataParallel(net))
        csq.quantize_activations(nn.DataParallel(net), 4)
    """,
    "weights are NaN": """
        csq.convert(nanned(net))
    """,
    "no values yet": """
        csq.convert(nn.LazyLinear(3))
        csq.convert(nn.Linear(2, 2, device="meta"))
    """,
    "no converted layer": """
        csq.harden(net)
        csq.set_temperature(net, 1.0)
        csq.Budget(net, 2.0)
    """,
    "a temperature must be": """
        csq.set_temperature(soft, 0)
        csq.set_temperature(soft, -1.0)
        csq.set_temperature(soft, nan)
        csq.set_temperature(soft, 1e9)
        csq.set_temperature(soft, None)
        csq.set_temperature(soft, "hot")
        csq.temperature(0.5, 0)
        csq.gate(x, 0)
        csq.gate(x, -1.0)
        csq.gate(x, nan)
        csq.gate(x, None)
        csq.temperature(0.5, nan)
        csq.Recipe(beta_start=0)
    """,
    "must be a finite number": """
        csq.parameter_groups(net, -1)
        csq.parameter_groups(net, nan)
        csq.parameter_groups(net, None)
        csq.parameter_groups(net, "0.1")
        csq.parameter_groups(net, 0.1, logit_lr=-1)
        csq.parameter_groups(net, 0.1, logit_lr=nan)
        csq.parameter_groups(net, 0.1, weight_decay=-1)
        csq.parameter_groups(net, 0.1, weight_decay=nan)
        csq.parameter_groups(net, 0.1, weight_decay=None)
        csq.temperature(-0.1)
        csq.temperature(1.1)
        csq.temperature(nan)
        csq.temperature(None)
        csq.temperature("0.5")
        csq.Budget(soft, 2.0, strength=-1)
        csq.Budget(soft, 2.0, strength=nan)
        csq.Budget(soft, 2.0, strength=None)
        csq.quantize_activations(net, 4, clip=0)
        csq.quantize_activations(net, 4, clip=-1)
        csq.quantize_activations(net, 4, clip=nan)
        csq.quantize_activations(net, 4, clip=None)
        csq.Recipe(target="2")
        csq.Recipe(target=nan)
        csq.Recipe(target=-1)
        csq.Recipe(lr=-1)
        csq.Recipe(lr=nan)
        csq.Recipe(lr=None)
        csq.Recipe(lr="0.1")
        csq.Recipe(logit_lr=inf)
        csq.Recipe(weight_decay=nan)
        csq.Recipe(warmup_epochs=-1)
        csq.Recipe(strength=inf)
        csq.recipes.get("digits", lr="high")
        short.replace(lr=nan)
        Normalise((0.5,), (0.0,))
        Normalise((0.5,), (nan,))
        reproduce(target=nan)
        reproduce(target="2")
    """,
    "must be finite": """
        csq.temperature(0.5, 1.0, inf)
        csq.Recipe(beta_end=inf)
    """,
    "cannot be reached": """
        csq.Budget(soft, 0.5)
        csq.Budget(soft, 9)
        csq.Budget(soft, nan)
        csq.Budget(soft, inf)
        csq.Budget(soft, None)
        csq.Budget(soft, "2")
        csq.Budget(soft, True)
        fit(recipe=short.replace(target=0.1))
        fit(recipe=short.replace(target=9))
        csq.Trainer(net, data, short).retarget(nan)
        csq.Trainer(net, data, short).retarget(None)
        reproduce(target=0.1)
    """,
    "freeze(like": """
        csq.Budget(soft, 8.0).freeze(like={})
        csq.Budget(soft, 8.0).freeze(like="state")
    """,
    "no quantized layer": """
        csq.integers(net)
        csq.report(net)
        csq.save_packed(net, path)
        csq.export_onnx(net, x, path)
    """,
    "is no longer step * integer": """
        csq.integers(changed(exact))
        csq.report(changed(exact))
        csq.save_packed(changed(exact), path)
    """,
    "still has its planes": """
        csq.save_packed(soft, path)
        csq.fold_batch_norm(soft, x)
    """,
    "PackedFile": """
        csq.load_packed(__file__)
        csq.load_packed(packed)
        csq.load_packed(packed, soft)
        csq.load_packed(packed, nn.Linear(3, 3))
        csq.verify_packed(__file__)
    """,
    "unknown ": """
        csq.pretrained("resnet")
        csq.pretrained(None)
        csq.pretrained(3)
        csq.evaluate(net, data, None)
        csq.recipes.get(None)
        csq.models.get(None)
        csq.data.get(None)
        csq.reproduce(model=None)
        csq.reproduce(profile="fast")
        csq.reproduce(profile=None)
    """,
    "nothing to quantize": """
        csq.quantize_activations(net, 4, skip="*")
    """,
    "no nn.ReLU": """
        csq.quantize_activations(nn.Linear(2, 2), 4)
    """,
    "quantized already": """
        csq.quantize_activations(quantized, 4)
    """,
    "batches must be a list": """
        csq.recalibrate(net, None)
        csq.recalibrate(net, x)
        csq.recalibrate(net, 3)
    """,
    "no batch to recalibrate": """
        csq.recalibrate(net, [])
    """,
    "a batch to recalibrate on": """
        csq.recalibrate(net, [None])
        csq.recalibrate(net, [[]])
        csq.recalibrate(net, [{"x": x}])
        csq.recalibrate(net, ["x"])
        csq.recalibrate(net, [x.numpy()])
    """,
    "from a batch [1, 8]": """
        csq.recalibrate(net, [x[:1]])
    """,
    "NaN or infinity": """
        csq.recalibrate(net, [x * nan])
        csq.recalibrate(net, [x * inf])
    """,
    "no batch norm right after": """
        csq.fold_batch_norm(nn.Linear(8, 4), x)
    """,
    "example must": """
        csq.fold_batch_norm(net, None)
        csq.fold_batch_norm(net, [x])
        csq.fold_batch_norm(net, x.numpy())
        csq.fold_batch_norm(net, {"x": x})
        csq.fold_batch_norm(net, torch.tensor(1.0))
        csq.export_onnx(exact, None, path)
        csq.export_onnx(exact, [x], path)
        csq.export_onnx(exact, x.numpy(), path)
        csq.export_onnx(exact, x[:1], path)
        csq.export_onnx(exact, (), path)
        csq.export_onnx(exact, (x, 3), path)
        csq.export_onnx(exact, (x, x[:3]), path)
    """,
    "no mere rounding": """
        csq.fold_batch_norm(net, x * nan)
    """,
    "accuracy compares outputs [batch, classes] with whole numbers": """
        csq.accuracy(x, y[:, None])
        csq.accuracy(x, y[:3])
        csq.accuracy(x, y.float())
        csq.accuracy(x, x)
        csq.accuracy(x[:, 0], y)
        csq.accuracy({"out": x}, y)
        csq.accuracy((x, x), y)
        csq.accuracy(None, y)
        csq.accuracy(x, None)
        csq.accuracy(x.numpy(), y.numpy())
        csq.accuracy(x[:0], y[:0])
        csq.evaluate(Returns("dict"), data)
        csq.evaluate(Returns("tuple"), data)
        fit(Returns("dict"))
        fit(Returns("tuple"))
        fit(Returns("none"))
        fit(data=labels(y.float()))
        fit(data=labels(y[:, None]))
        fit(data=labels(x))
    """,
    "outputs of the model are NaN": """
        csq.accuracy(x * nan, y)
        csq.evaluate(net, nan_valid, "valid")
    """,
    "data must be a csq.data.Data, got": """
        csq.evaluate(net, None)
        csq.evaluate(net, loader)
        csq.evaluate(net, (x, y))
        fit(data=None)
        fit(data="digits")
        fit(data=loader)
        fit(data=(x, y))
        csq.Trainer(net, None, short)
        csq.Trainer(net, loader, short)
    """,
    "did you mean": """
        csq.pretrained("resnet20-cifar10")
        csq.evaluate(net, data, "tset")
        csq.Recipe(serch_epochs=3)
        csq.recipes.get("digts")
        csq.recipes.get(["digits"])
        csq.recipes.get("digits", rate=1)
        csq.models.get("resnet2")
        csq.models.get(["resnet20"])
        csq.data.get("digit")
        csq.data.get(["digits"])
        next(data.batches("tset", 2))
        csq.reproduce("csqq")
        csq.reproduce(None)
        csq.reproduce(model="resnet2")
        csq.reproduce(data="mnits")
    """,
    "must be a function of outputs and targets": """
        csq.evaluate(net, data, metric=None)
        csq.evaluate(net, data, metric="accuracy")
        fit(loss=None)
        fit(loss="cross_entropy")
        fit(metric=None)
        fit(metric="accuracy")
        csq.Trainer(net, data, short, loss=None)
        csq.Trainer(net, data, short, metric=3)
    """,
    "must return one finite number": """
        csq.evaluate(net, data, metric=lambda out, y: None)
        csq.evaluate(net, data, metric=lambda out, y: nan)
        csq.evaluate(net, data, metric=lambda out, y: inf)
        csq.evaluate(net, data, metric=lambda out, y: "0.5")
        csq.evaluate(net, data, metric=lambda out, y: out)
        fit(metric=lambda out, y: None)
        fit(metric=lambda out, y: nan)
        fit(metric=lambda out, y: "good")
        fit(metric=lambda out, y: out)
    """,
    "no parameter to train": """
        fit(net.requires_grad_(False))
        fit(nn.Flatten())
    """,
    "does not take inputs": """
        fit(nn.Linear(9, 4))
    """,
    "build it with num_classes": """
        fit(nn.Linear(8, 3))
        fit(data=labels(y + 9))
    """,
    "that are NaN or infinite: repair": """
        fit(data=nan_valid)
        fit(data=nan_test)
        fit(data=nan_train)
    """,
    "the loss fails on outputs": """
        fit(data=labels(y.int()))
        fit(loss=F.mse_loss)
        fit(loss=nn.CrossEntropyLoss)
        fit(loss=lambda out: out)
    """,
    "which is no class": """
        fit(data=labels(y - 1))
        fit(data=labels(y - 100))
    """,
    "recipe must be a csq.Recipe, got": """
        fit(recipe=None)
        fit(recipe="digits")
        fit(recipe={})
        fit(recipe=csq.Recipe)
        csq.Trainer(net, data, None)
        csq.Trainer(net, data, "digits")
    """,
    "does not train on": """
        fit(recipe=short.replace(batch_size=1))
    """,
    "the loss must be a tensor [] with a gradient": """
        fit(loss=lambda out, y: 0.5)
        fit(loss=lambda out, y: F.cross_entropy(out, y).item())
        fit(loss=lambda out, y: F.cross_entropy(out, y).detach())
        fit(loss=lambda out, y: F.cross_entropy(out, y, reduction="none"))
    """,
    "the loss of the first batch is nan": """
        fit(loss=lambda out, y: F.cross_entropy(out, y) * nan)
    """,
    "cannot be used here": """
        fit(device="abacus")
        fit(device="cuda:99")
        fit(device=3.5)
        data.to("abacus")
        data.to("cuda:99")
        data.to(None)
        reproduce(device="abacus")
    """,
    "holds no values": """
        fit(device="meta")
    """,
    "must be True or False": """
        fit(bfloat16="yes")
        fit(progress="no")
        csq.Recipe(growth="False")
        csq.Recipe(weighted=0)
        csq.Recipe(one_rate=None)
    """,
    "needs a run_dir": """
        fit(tensorboard=True)
    """,
    "run_dir must be": """
        fit(run_dir=3)
    """,
    "cannot make the run folder": """
        fit(run_dir=__file__)
    """,
    "not empty and not a run": """
        fit(run_dir=Path(__file__).parent)
    """,
    "a batch must be a pair": """
        csq.Trainer(net, data, short).step(x)
        csq.Trainer(net, data, short).step((x,))
    """,
    "no state of a Trainer": """
        csq.Trainer(net, data, short).load_state_dict({})
        csq.Trainer(net, data, short).load_state_dict(None)
        csq.Trainer(net, data, short).load_state_dict(net.state_dict())
    """,
    "skip must be a tuple": """
        csq.Recipe(skip="fc")
        csq.Recipe(skip=None)
        csq.Recipe(skip=(1,))
    """,
    "both 0": """
        csq.Recipe(search_epochs=0, finetune_epochs=0)
    """,
    "must be below 1": """
        csq.Recipe(momentum=1)
    """,
    "no CIFAR-10": """
        csq.data.cifar10("/no/such/root")
    """,
    "must be inputs and targets, a pair": """
        Data("d", None, pair, pair)
        Data("d", x, pair, pair)
        Data("d", (x,), pair, pair)
        Data("d", (x, y, y), pair, pair)
        Data("d", ("x", "y"), pair, pair)
        Data("d", (x, None), pair, pair)
        Data("d", loader, pair, pair)
        Data("d", Stream(), pair, pair)
        Data("d", (torch.tensor(1.0), torch.tensor(1)), pair, pair)
    """,
    "as many of both": """
        Data("d", (x, y[:3]), pair, pair)
        Data("d", (x[:0], y[:0]), pair, pair)
    """,
    "one shape": """
        Data("d", (x[:, :3], y), pair, pair)
    """,
    "count from 0 to classes - 1": """
        Data("d", pair, pair, pair, classes=2)
        Data("d", pair, pair, (x, y - 1), classes=4)
        Data("d", pair, pair, (x, y + 0.5), classes=4)
    """,
    "must be a function or None": """
        Data("d", pair, pair, pair, augment="flip")
        Data("d", pair, pair, pair, prepare=3)
    """,
    "no crop of": """
        CropFlip(9)(images, torch.Generator())
        CropFlip(2)(x, torch.Generator())
    """,
    "one number a channel": """
        Normalise((0.5, 0.5), (0.5,))
    """,
    "do not fit": """
        Normalise((0.5,) * 3, (0.5,) * 3)(images)
        Normalise((0.5,), (0.5,), crop=9)(images)
    """,
    "history must be": """
        csq.plots.training(None)
        csq.plots.training([1, 2])
        csq.plots.training(pandas.DataFrame())
        csq.plots.bits(pandas.DataFrame({"epoch": [1]}))
    """,
    "draws": """
        csq.plots.scheme(None)
        csq.plots.scheme(exact)
        csq.plots.weights(None, csq.integers(exact)["0"])
        csq.plots.weights(x, None)
    """,
    "no checkpoint": """
        reproduce(start="/no/such/file")
    """,
    "give another folder as results": """
        reproduce(results=__file__)
    """,
    "is a folder: give the path of a file": """
        csq.save_packed(exact, Path(__file__).parent)
        csq.load_packed(Path(__file__).parent)
        csq.verify_packed(Path(__file__).parent)
    """,
    "there is no folder /no/such: make it first": """
        csq.save_packed(exact, "/no/such/file")
    """,
    "with a state_dict": """
        reproduce(start=__file__)
    """,
}

X, Y = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 4
SHORT = csq.Recipe(search_epochs=1, finetune_epochs=1, batch_size=8, recalibration_batches=1)


def network():
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 8))


def rows(train=(X, Y), valid=(X, Y), test=(X, Y)):
    return Data("rows", train, valid, test)


def quantized():
    model = network()
    csq.quantize_activations(model, 4)
    return model


def changed(model):
    model[0].weight.data += 0.01
    return model


def nanned(model):
    model[0].weight.data[0] = nan
    return model


class Returns(nn.Linear):
    """A model whose output is no tensor."""

    def __init__(self, kind):
        super().__init__(8, 8)
        self.kind = kind

    def forward(self, x):
        y = super().forward(x)
        return {"dict": {"y": y}, "tuple": (y, y), "none": None}[self.kind]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from zip(X, Y)


MAKE = {
    "net": network, "soft": lambda: converted(network()), "exact": lambda: copy.deepcopy(EXACT), "quantized": quantized,
    "x": lambda: X, "y": lambda: Y, "pair": lambda: (X, Y), "data": rows, "short": lambda: SHORT,
    "images": lambda: torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "labels": lambda: lambda y: rows(*[(X, y)] * 3),
    "loader": lambda: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y)),
    "nan_train": lambda: rows(train=(X * nan, Y)), "nan_valid": lambda: rows(valid=(X * nan, Y)),
    "nan_test": lambda: rows(test=(X * nan, Y)),
}  # fmt: skip
EXACT, MISSING = hardened(network()), object()


class Names(dict):
    """Names of a call, each made when it is asked for."""

    def __missing__(self, name):
        if name not in MAKE:
            raise KeyError(name)
        self[name] = MAKE[name]()
        return self[name]


def calls(words):
    return [text.strip() for text in WRONG[words].splitlines() if text.strip()]


def test_there_are_many_and_each_is_there_once():
    texts = [text for words in WRONG for text in calls(words)]
    assert len(texts) == len(set(texts)) > 340


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "packed.safetensors"
    csq.save_packed(EXACT, path)
    return path


def error_of(text, names):
    """Kind and text of the error that a call raises, and whether the library itself raises it."""
    try:
        eval(text, globals(), names)
    except (ValueError, TypeError, OSError) as error:
        last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        return f"{type(error).__name__}: {error}", Path(csq.__file__).parent in last.parents
    return "nothing", False


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_argument_gets_one_sentence_and_nothing_is_written(words, packed, tmp_path, monkeypatch):
    if words in ("history must be", "draws"):
        pytest.importorskip("seaborn", reason="needs the extra notebook")
    if "export_onnx" in WRONG[words]:
        pytest.importorskip("onnx", reason='needs pip install -e ".[export]"')
    monkeypatch.chdir(tmp_path)

    def fit(model=MISSING, **options):
        usual = {"data": rows(), "recipe": SHORT, "progress": False, "run_dir": tmp_path / "run"}
        if "tensorboard" in options:
            del usual["run_dir"]
        return csq.fit(network() if model is MISSING else model, **usual | options)

    def reproduce(**options):
        return csq.reproduce("csq", "digits_cnn", "digits", progress=False, **options)

    for text in calls(words):
        said, ours = error_of(text, Names(fit=fit, reproduce=reproduce, packed=packed, path=tmp_path / "file"))
        assert words in said and ours, text
        assert not list(tmp_path.iterdir()), text
