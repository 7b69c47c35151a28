"""The training loop, a step at a time: search, freeze, finetune."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..activations import quantize_activations
from ..batchnorm import kept_in_eval, recalibrate, set_training
from ..budget import Budget
from ..check import Diverged, number
from ..conversion import convert, harden, set_temperature
from ..data import Data
from ..gates import temperature
from ..optim import optimizer
from ..planes import computed_ahead
from ..recipes import Recipe
from . import processes as parallel
from .held import Held
from .judge import JUDGE_BATCH, Loss, Metric, accuracy, described, evaluate
from .progress import Meter, Progress, rate_at
from .state import restore, state_of
from .trial import check_kinds, check_target_of, try_out


class Trainer:
    """Train a float model in place, as a recipe says. Raises ValueError as :func:`csq_mini.fit` does::

        trainer = Trainer(model, data, recipe)
        while not trainer.done:
            print(trainer.epoch())
        exact = trainer.hardened()

    Parts of the model that are in evaluation mode stay in it, and their batch norm keeps its statistics; but a model
    that is in it as a whole trains as a whole.

    Attributes:
        model, data, recipe, budget, optimizer: the parts; ``budget`` is None for float weights.
        history: a dict for each epoch, as :func:`csq_mini.fit` explains.
        temperature: None follows the recipe's schedule; a number holds it there.
        rate: function of (step, steps, warm-up steps): the learning rate as a share of its peak. No part of the state:
            set it again before you go on from one.
        on_step, on_epoch: called after each step, and with each epoch's entry of the history.
        penalty: added to the loss of each step; called after the forward pass.
    """

    def __init__(
        self, model: nn.Module, data: Data, recipe: Recipe, *,
        loss: Loss = F.cross_entropy, metric: Metric = accuracy, bfloat16: bool = False,
    ):  # fmt: skip
        check_kinds(model, data, recipe, loss, metric)
        self.still = kept_in_eval(model)  # names of what does not train
        check_target_of(model, recipe)
        try_out(model, self.still, data, recipe, loss, metric, bfloat16)
        self.model, self.data, self.recipe = model, data, recipe
        self.loss, self.metric, self.bfloat16 = loss, metric, bfloat16
        self.share = parallel.share(min(recipe.batch_size, len(data.train[1])))  # this process's part of a batch
        self.budget: Budget | None = None
        self.phases = [("float", recipe.search_epochs + recipe.finetune_epochs)]
        if recipe.activation_bits is not None:
            quantize_activations(model, recipe.activation_bits)
        self.held: Held | None = None
        if recipe.target is not None:
            self.held = Held(model) if recipe.hold and recipe.search_epochs else None
            convert(model, recipe.planes, recipe.skip, recipe.masks)
            if self.held:
                self.held.hold()
            self.retarget(recipe.target)
            self.phases = [("search", recipe.search_epochs), ("finetune", recipe.finetune_epochs)]
        self.epoch_steps = max(len(data.train[0]) // recipe.batch_size, 1)
        self.progress, self.meter = Progress(), Meter(torch.zeros((), device=next(model.parameters()).device))
        self.optimizer: Any = None  # from the first step of a phase on
        self.net = model  # what a step calls: the model, or its DDP wrapper
        self.history: list[dict[str, Any]] = []
        self.temperature: float | None = None
        self.rate = rate_at
        self.on_step: Callable[[], Any] | None = None
        self.on_epoch: Callable[[dict[str, Any]], Any] | None = None
        self.penalty: Callable[[], Tensor] | None = None

    def retarget(self, target: float) -> None:
        """Steer to another target from the next step on, with the masks as they are."""
        if self.budget and self.budget.frozen:
            raise ValueError("the masks are frozen, and with them the precision: start a new search")
        steered = self.budget.state_dict() if self.budget else None
        self.budget = self._budget(target)
        if steered:
            self.budget.load_state_dict(steered)

    def _budget(self, target: float) -> Budget:
        r = self.recipe
        return Budget(self.model, target, r.strength, r.floor, growth=r.growth, weighted=r.weighted)

    @property
    def phase(self) -> str:
        """Phase of the last step taken, at first that of the next: "search", "finetune" or "float"."""
        return self.phases[self.progress.phase][0]

    @property
    def steps(self) -> int:
        """Steps in the phase."""
        return self.phases[self.progress.phase][1] * self.epoch_steps

    @property
    def steps_done(self) -> int:
        """Steps taken, over all phases."""
        before = sum(epochs for _, epochs in self.phases[: self.progress.phase])
        return before * self.epoch_steps + self.progress.step

    @property
    def steps_total(self) -> int:
        """Steps in all phases."""
        return sum(epochs for _, epochs in self.phases) * self.epoch_steps

    @property
    def done(self) -> bool:
        """Whether all steps are taken."""
        return self.steps_done == self.steps_total

    def step(self, batch: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Take one training step, with the freeze first if the search is over; only the freeze waits for the device.

        ``batch`` is inputs and targets; None draws the next of the recipe. Returns the loss without the penalty, 0-dim.
        """
        self._begin()
        r, at, optimizer = self.recipe, self.progress, self.optimizer
        if batch is None:
            batch = self.data.training_batch(r.batch_size, r.seed, self.steps_done, self.share)
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ValueError(f"a batch must be a pair of inputs and targets, got {described(batch)}")
        x, y = batch
        rate = number("trainer.rate(...)", self.rate(at.step, self.steps, r.warmup_epochs * self.epoch_steps))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        set_training(self.net, self.still)
        if self.budget:
            set_temperature(self.model, self.beta())
        ahead = computed_ahead(self.model) if self.budget else nullcontext()
        with ahead, torch.autocast(x.device.type, torch.bfloat16, enabled=self.bfloat16):
            loss = self.loss(self.net(x), y)
        total = loss + self.budget.penalty(at.step / self.steps) if self.budget else loss
        optimizer.zero_grad()
        (total + self.penalty() if self.penalty else total).backward()
        optimizer.step()
        self.meter.loss += loss.detach()
        self.meter.images += len(y) * parallel.count()
        at.step += 1
        if self.on_step:
            self.on_step()
        return loss.detach()

    def beta(self) -> float:
        """The temperature of the next step."""
        if self.temperature is not None:
            return self.temperature
        return temperature(self.progress.step / max(self.steps, 1), self.recipe.beta_start, self.recipe.beta_end)

    def _begin(self) -> None:
        """Do what is due before a step: the next phase, the freeze, a new optimizer."""
        if self.done:
            raise ValueError("the training is done: trainer.hardened() is its result")
        self.meter.since = self.meter.since or time.perf_counter()
        while self.progress.step == self.steps:
            self.progress, self.optimizer = Progress(self.progress.phase + 1), None
        if self.optimizer is None:
            if self.budget and self.phase == "finetune" and not self.budget.frozen:
                self._freeze()
            self._prepare()

    def _prepare(self) -> None:
        """Make a new optimizer and, where several processes train together, a new wrapper."""
        r = self.recipe
        self.optimizer = optimizer(self.model, r.optimizer, r.lr, steps=self.steps, logit_lr=r.logit_lr,
                                   weight_decay=r.weight_decay, momentum=r.momentum)  # fmt: skip
        for group in self.optimizer.param_groups:
            group["peak"] = r.lr if r.one_rate else group["lr"]
        self.net = parallel.wrap(self.model)

    def _freeze(self) -> None:
        assert self.budget
        if self.held:
            self.held.release()
        self.budget.freeze(rewind=self.held.start if self.held else None)

    def epoch(self) -> dict[str, Any]:
        """Train to the end of the epoch, judge, and return the new entry of the history."""
        while not self.meter.images or self.progress.step % self.epoch_steps:
            self.step()
        self.meter.settle(self.recipe, self._when())
        try:
            entry = self._judge()
        except ValueError as error:
            kind = Diverged if isinstance(error, Diverged) else ValueError
            raise kind(f"judging after {self._when()}: {error}") from error
        self.meter = Meter(torch.zeros_like(self.meter.loss))
        self.history.append(entry)
        if self.done and self.budget and not self.budget.frozen:  # a recipe without a finetune
            self._freeze()
        if self.on_epoch:
            self.on_epoch(entry)
        return entry

    def _when(self) -> str:
        return f"step {self.progress.step} of the {self.phase} phase"

    def _judge(self) -> dict[str, Any]:
        start, meter = time.perf_counter(), self.meter
        soft = evaluate(self.model, self.data, "valid", self.metric)
        hard = evaluate(self.hardened(), self.data, "valid", self.metric) if self.budget else soft
        entry = {"phase": self.phase, "epoch": len(self.history) + 1, "step": self.progress.step,
                 "loss": float(meter.loss) / self.epoch_steps, "soft": soft, "hard": hard,
                 "seconds": meter.seconds + time.perf_counter() - start,
                 "images_per_second": meter.images / meter.seconds}  # fmt: skip
        if self.budget:
            layers = self.budget.layers
            entry |= {"beta": float(next(iter(layers.values())).beta), "bits": self.budget.bits(),
                      "cut": self.budget.cut}  # fmt: skip
            entry |= {f"bits/{name}": int(planes.open.sum()) for name, planes in layers.items()}
        return entry

    def hardened(self) -> nn.Module:
        """A hardened copy of the model, in evaluation mode, its batch norm recalibrated as the recipe says."""
        return self.recalibrated(parallel.unsync(harden(self.model)))

    def recalibrated(self, hard: nn.Module) -> nn.Module:
        """A hardened model in evaluation mode, its batch norm recalibrated in place as the recipe says."""
        set_training(hard, self.still)
        # Augmented: with statistics of images as they are, a ResNet-20 trained on padded crops lost four points.
        count = self.recipe.recalibration_batches
        images = islice(self.data.batches("train", JUDGE_BATCH, self.recipe.seed), count)
        return (recalibrate(hard, images) if count else hard).eval()

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to continue bit-identically, global random numbers included."""
        return state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of a trainer like this one.

        ValueError if it is of another one, or only this one's masks are frozen; nothing changes then.
        """
        restore(self, state)
