"""The state of a training, from which it continues bit-identically, global random numbers included."""

from typing import Any

from torch import Tensor

from .progress import STATE, Progress, is_frozen
from .run_folder import get_rng_state, set_rng_state


def state_of(trainer: Any) -> dict[str, Any]:
    """What :func:`restore` needs."""
    trainer.meter.settle(trainer.recipe, trainer._when())
    return {
        "phase": trainer.progress.phase, "step": trainer.progress.step, "history": trainer.history,
        "loss": trainer.meter.loss, "seconds": trainer.meter.seconds, "images": trainer.meter.images,
        "model": trainer.model.state_dict(), "optimizer": trainer.optimizer and trainer.optimizer.state_dict(),
        "rng": get_rng_state(), "target": trainer.budget and trainer.budget.target, "temperature": trainer.temperature,
        "budget": trainer.budget and trainer.budget.state_dict(),
        "still": trainer.still,
    }  # fmt: skip


def restore(trainer: Any, state: dict[str, Any]) -> None:
    """Have a trainer continue from a state; ValueError if it does not fit, before anything changes."""
    check_state(state, trainer)
    if trainer.budget and state["target"] != trainer.budget.target:
        trainer.budget = trainer._budget(state["target"])
    trainer.temperature = state["temperature"]
    trainer.progress, trainer.history = Progress(state["phase"], state["step"]), list(state["history"])
    trainer.meter.loss.copy_(state["loss"])
    trainer.meter.seconds, trainer.meter.images, trainer.meter.since = state["seconds"], state["images"], None
    if trainer.budget and not trainer.budget.frozen and is_frozen(state["model"]):
        if trainer.held:
            trainer.held.release()
        trainer.budget.freeze(like=state["model"])
    if trainer.budget:
        trainer.budget.load_state_dict(state["budget"])
    trainer.model.load_state_dict(state["model"])
    if 0 < trainer.progress.step < trainer.steps:
        trainer._prepare()
        trainer.optimizer.load_state_dict(state["optimizer"])
    else:
        trainer.optimizer = None  # the next step makes a new one
    set_rng_state(state["rng"])


def check_state(state: Any, trainer: Any) -> None:
    """ValueError if a state is not of a trainer like this one."""
    if not isinstance(state, dict) or not set(state) >= STATE or not isinstance(state["model"], dict):
        raise ValueError("this is no state of a Trainer, or one of an older version: pass what its state_dict() gave")
    here, there = ({k: v for k, v in m.items() if isinstance(v, Tensor)}
                   for m in (trainer.model.state_dict(), state["model"]))  # fmt: skip
    same_phase = is_frozen(here) == is_frozen(there)
    if is_frozen(here) and not same_phase:
        raise ValueError("the state was saved before budget.freeze(), and this model is frozen: make a new Trainer")
    shapes = ({(k, v.shape) for k, v in m.items() if same_phase or "csq." not in k} for m in (here, there))
    wrong = sorted(set.symmetric_difference(*shapes))
    phase, step, steps = state["phase"], state["step"], [e * trainer.epoch_steps for _, e in trainer.phases]
    stands = phase in range(len(steps)) and step in range(steps[phase] + 1)
    if wrong or not stands or state["still"] != trainer.still:
        why = (f"its model differs in {wrong[0][0]}" if wrong else f"it keeps {state['still']} in evaluation mode"
               if stands else f"it stands at step {step} of phase {phase}")  # fmt: skip
        raise ValueError(f"the state is of another training ({why}): make the Trainer as that one was made")
