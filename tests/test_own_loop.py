"""The loop that the README shows, and networks without batch norm, whose search must not throw them off."""

import copy
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import few_digits, mlp, same_state
from torch import nn

import csq_mini as csq
from csq_mini.train.trainer import rate_at

pytestmark = pytest.mark.filterwarnings("ignore:stays float")

LOOP = """
csq.convert(model, planes=8)
budget = csq.Budget(model, target=2.0)
for phase, steps in (("search", 3000), ("finetune", 1500)):
    if phase == "finetune":
        budget.freeze()
    optimizer = csq.optimizer(model, lr=0.1, weight_decay=5e-4, steps=steps)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step, (x, y) in zip(range(steps), forever(train)):
        csq.set_temperature(model, csq.temperature(step / steps))
        loss = F.cross_entropy(model(x), y) + budget.penalty(step / steps)
        optimizer.zero_grad(); loss.backward(); optimizer.step(); schedule.step()
exact = csq.recalibrate(csq.harden(model), train)
print(csq.report(exact))
"""


def forever(batches):
    while True:
        yield from batches


def test_a_loop_of_ones_own_runs_as_the_readme_shows_it(capsys):
    data = few_digits(512, 40, 300)
    train = list(data.batches("train", 64))
    names = {"csq": csq, "torch": torch, "F": F, "model": csq.models.digits_cnn(), "train": train, "forever": forever}
    exec(LOOP.replace("3000", "250").replace("1500", "150"), names)  # fewer steps, else to the letter
    exact = names["exact"].eval()
    assert csq.report(exact).total.paper_bits <= 2.0 and str(csq.report(exact)) in capsys.readouterr().out
    assert csq.accuracy(exact(data.test[0]), data.test[1]) > 0.75


def test_the_readme_shows_this_loop():
    readme = Path(__file__).parent.parent.joinpath("README.md").read_text("utf8")
    [block] = [b for b in re.findall("```python\n(.*?)```", readme, re.DOTALL) if "Budget(" in b]
    lines = [re.sub(r" +#.*", "", line) for line in block.splitlines()]
    assert [line for line in lines if line and "import" not in line][: LOOP.count("\n") - 1] == LOOP.split("\n")[1:-1]


def test_a_loop_of_ones_own_is_the_trainer_to_the_bit():
    data, model = few_digits(), mlp()
    steps = len(data.train[0]) // 32  # an epoch's
    recipe = csq.Recipe(target=2.0, search_epochs=4, finetune_epochs=3, batch_size=32, warmup_epochs=0.0)
    batches = [data.training_batch(32, recipe.seed, step) for step in range(7 * steps)]
    schedule = "torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps, 0))"
    edits = {
        "3000": str(4 * steps), "1500": str(3 * steps),
        "torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)": schedule, "forever(train)": "train",
        "exact = csq.recalibrate(csq.harden(model), train)": "exact = csq.harden(model)",
    }  # fmt: skip
    own = LOOP
    for old, new in edits.items():
        assert own.count(old) == 1
        own = own.replace(old, new)
    trainer = csq.Trainer(copy.deepcopy(model), data, recipe)
    torch.manual_seed(3)  # of the dropout
    exec(own, {"csq": csq, "torch": torch, "F": F, "model": model, "train": iter(batches), "rate_at": rate_at})
    torch.manual_seed(3)
    while not trainer.done:
        trainer.step()
    assert same_state(trainer.model, model) and same_state(csq.harden(trainer.model), csq.harden(model))
    assert csq.report(model).total.paper_bits <= 2.0


class Rows(nn.Module):
    """A transformer that reads a digit as eight rows of eight pixels. Layer norm only."""

    def __init__(self, width=32):
        super().__init__()
        self.embed, self.position = nn.Linear(8, width), nn.Parameter(0.1 * torch.randn(8, width))
        block = nn.TransformerEncoderLayer(
            width, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        tokens = self.encoder(self.embed(x.squeeze(1)) + self.position)
        return self.head(self.norm(tokens).mean(1))


def plain_mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))


@pytest.mark.parametrize("build, target", [(Rows, 4.0), (plain_mlp, 3.0)])
def test_a_trained_network_without_batch_norm_finetunes_to_within_three_points(build, target):
    torch.manual_seed(0)
    data = csq.data.digits()
    recipe = csq.Recipe(target=None, search_epochs=8, finetune_epochs=0, batch_size=64, lr=0.1)
    trained = csq.fit(build(), data, recipe, progress=False)
    assert trained.accuracy > 0.9

    x, y = data.valid
    for masks, near in (("free", 1e-3), ("ordered", 0.2)):
        started = copy.deepcopy(trained.model)
        csq.convert(started, masks=masks)
        with torch.no_grad():
            exact = started(x)
            csq.set_temperature(started, 1.0)
            assert torch.allclose(started(x), exact, atol=near)  # the search starts where the float network stood,
            assert (exact - trained.model(x)).abs().max() < 0.2  # to 8 planes

    recipe = csq.Recipe(target=target, search_epochs=4, finetune_epochs=4, batch_size=64, lr=0.05)
    result = csq.fit(trained.model, data, recipe, progress=False)
    assert result.history["soft"].min() > trained.history["soft"].iloc[-1] - 0.05  # and is thrown off at no time
    assert result.accuracy >= trained.accuracy - 0.03
    assert result.report.total.paper_bits <= target
