"""Short runs in a folder, and ways to stop them: what the tests of resuming and of run folders share."""

import torch
from conftest import conv_net, few_digits
from torch import nn

import csq_mini as csq
from csq_mini.train.identity import describe

RECIPE = csq.Recipe(
    target=3.0, search_epochs=2, finetune_epochs=2, batch_size=32, checkpoint_steps=3, recalibration_batches=1
)


def noisy(x, generator):
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def network():
    """Batch norm, dropout and grouped convolutions: all that a resumed run must continue."""
    torch.manual_seed(0)
    model = conv_net()
    return model.insert(10, nn.Dropout(0.2))


def run(folder, model=None, recipe=RECIPE, data=None, **options):
    model = model or network()
    return csq.fit(model, data or few_digits(augment=noisy), recipe, run_dir=folder, progress=False, **options)


class Stop(Exception):
    pass


def stop_at(call, function):
    """``function``, which fails at its ``call``-th call as if the process had died there.

    Counted from the first step, or judging: before it, fit tries the function once.
    """
    calls = iter(range(-1, 10**9))

    def stopping(*args):
        if next(calls) == call:
            raise Stop
        return function(*args)

    stopping.csq_identity = describe(function)  # to a run folder it is the same
    return stopping


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
