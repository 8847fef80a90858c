"""The first steps of a run as the run itself would take them, in a folder that is thrown away."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rmlora.config import RunConfig
from rmlora.doctor.failures import FAILURES, wording
from rmlora.doctor.padding import padding_gap
from rmlora.doctor.reloaded import save_and_reload
from rmlora.doctor.steps import NUM_STEPS, WatchSteps
from rmlora.doctor.subject import Cost, Subject
from rmlora.errors import ConfigError, RmloraWarning
from rmlora.run.arguments import check_trackers
from rmlora.run.choice import complete
from rmlora.run.plan import Plan, make_plan
from rmlora.run.trainer import make_trainer
from rmlora.run.weights import initial_factors
from rmlora.tasks.encode import head_of


def try_run(config: RunConfig, steps: int = NUM_STEPS) -> Subject:
    """Train for a few steps, evaluate a few examples, save, load again, and tell what was seen.

    Learning rates, batches, masks and clipping are those of the run; only its trackers stay off. The output folder is
    neither read nor written.

    Args:
        config: as `rmlora.config_source.resolve` returns it.
        steps: to take.

    Raises:
        RmloraError: what would stop the run before its first step; or it trains the classification layer alone.
    """
    if config.scope == "head":
        raise ConfigError(
            "rmlora doctor takes steps through the whole model, and scope=head trains a layer on cached features; "
            "run it: it takes seconds"
        )
    if config.scope != "whole":
        raise ConfigError(
            f"rmlora doctor takes the steps of one training run, and scope={config.scope} is more than one; "
            "try scope=whole with the same model, data and method"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("rmlora doctor looks at one process; start it without torchrun")
    config = complete(config)
    check_trackers(config.training.report_to)
    with tempfile.TemporaryDirectory(prefix="rmlora-doctor-") as folder, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", RmloraWarning)
        plan = make_plan(_moved(config, folder))
        subject = _take_steps(plan, Path(folder), steps)
    said = tuple(dict.fromkeys(str(w.message) for w in told if issubclass(w.category, RmloraWarning)))
    # What is said of the run is said of the run, not of its stand-in.
    return replace(subject, plan=replace(plan, config=config), warned=said)


def _moved(config: RunConfig, folder: str) -> RunConfig:
    quiet = {"report_to": [], "save": "last", "save_every_epoch": False}
    training = config.training.model_copy(update=quiet)
    return config.model_copy(update={"training": training, "output": folder})


def _take_steps(plan: Plan, folder: Path, count: int) -> Subject:
    initial, forward = initial_factors(plan), plan.model.__dict__.get("forward")
    watch = WatchSteps(plan.model, plan.handle, count)
    plan.arguments.logging_strategy, plan.arguments.logging_steps = "steps", 1
    trainer = make_trainer(plan, [watch])
    _forget_peak()
    try:
        trainer.train()
    except FAILURES as error:
        return Subject(plan, tuple(watch.steps), optimizer=watch.optimizer, failure=wording(error))
    finally:
        watch.close()
    peak = _peak()
    losses = tuple(float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    evaluated, number, seconds = _evaluate(trainer, plan)
    trainer.optimizer.zero_grad()
    _undress(plan.model, forward)
    return Subject(
        plan,
        tuple(watch.steps),
        losses,
        watch.optimizer,
        evaluated=evaluated,
        num_evaluated=number,
        padding_gap=padding_gap(plan),
        saved=save_and_reload(plan, initial, folder),
        cost=Cost(tuple(watch.seconds), seconds / number, peak, _total_bytes(), str(plan.arguments.device)),
    )


def _evaluate(trainer: Any, plan: Plan) -> tuple[Mapping[str, float] | str, int, float]:
    """Evaluate one batch of the held-out part as the run would."""
    training = plan.config.training
    some = head_of(plan.encoded["eval"], training.eval_batch_size, training.seed)
    begun = time.perf_counter()
    try:
        found = trainer.evaluate(eval_dataset={"eval": some})
    except FAILURES as error:
        found = wording(error)
    return found, len(some), time.perf_counter() - begun


def _undress(model: Any, forward: Any) -> None:
    """Take the trainer's autocast off the model, so that outputs can be compared in float32."""
    for name in ("forward", "_original_forward"):
        model.__dict__.pop(name, None)
    if forward is not None:
        model.forward = forward


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak() -> int | None:
    """Return the most memory that tensors took on the GPU; without one, that the process took since it began."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows keeps no such number
        return None
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _total_bytes() -> int | None:
    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
