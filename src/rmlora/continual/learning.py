"""Learning one stage: an ordinary training of the model, in which only the stage's classes are visible."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from torch import Tensor

from rmlora.attach import attach
from rmlora.combine import chain
from rmlora.continual.absorbing import absorb_explained, fit_residuals
from rmlora.continual.learnt import Learnt, capture, put_back
from rmlora.continual.partition import Tasks
from rmlora.continual.plan import ContinualRun, Stage, plan_stage, widths_of
from rmlora.continual.visible_classes import visible_classes
from rmlora.errors import RmloraWarning
from rmlora.run.divergence import StopAtNan
from rmlora.run.plan import Plan
from rmlora.run.progress import ShowProgress
from rmlora.run.record import PREFIXES, Row, measure_adapter
from rmlora.run.trainer import make_trainer
from rmlora.run.weights import initial_factors


@dataclass(frozen=True, eq=False)
class Learned:
    """A stage that is finished.

    Attributes:
        plan: its model, trained; of sd-lora folded, a plain PEFT model.
        initial: what the adapter began with, where that moved the base weights.
        learnt: what the next stage gets; nothing where there is none.
        found: losses and metrics of both parts, such as `train_accuracy`, and what became of the adapter.
        predictions: the answers to the held-out examples of all classes seen, as predictions.safetensors holds them.
        steps: optimizer steps taken.
        loss: mean over the last epoch's batches, dropout on.
        residuals: of sd-lora, by module how far the new direction is from what earlier ones make of it.
        dropped: the modules in which it was dropped for that.
    """

    plan: Plan
    initial: Mapping[str, Tensor]
    learnt: Learnt
    found: Row
    predictions: bytes
    steps: int
    loss: float | None
    residuals: dict[str, float] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


def learn_stage(run: ContinualRun, stage: Stage, before: Learnt | None, console: Console) -> Learned:
    """Train a stage and measure it.

    Args:
        run: of which it is one.
        stage: which.
        before: what the stage before handed over; not changed. None for the first.
        console: where a bar is drawn.

    Raises:
        DivergedError: a number was lost.
    """
    assert run.data.classes is not None
    plan, place = plan_stage(run.config, run.sources, stage, before), run.place(stage)
    initial, progress = initial_factors(plan), ShowProgress(console, place, plan.metric)
    with visible_classes(plan.model, len(run.data.classes), _classes(stage.learns), _classes(stage.seen)):
        trainer = make_trainer(plan, [StopAtNan(place), progress])
        try:
            trainer.train()
        finally:
            progress.close()
        if plan.handle is not None:
            plan.handle.bind(trainer.optimizer)
        more = _finish_blocks(run, stage, plan, before) if run.is_decoupled else _finish(run, stage, plan)
        told = trainer.evaluate()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    predictions = place.predictions.read_bytes()
    shutil.rmtree(place.path, ignore_errors=True)
    found = _by_part(told) | more.pop("adapter")
    last = losses[-1] if losses else None
    return Learned(
        plan, initial, found=found, predictions=predictions, steps=trainer.state.global_step, loss=last, **more
    )


def _finish(run: ContinualRun, stage: Stage, plan: Plan) -> dict[str, Any]:
    """Take what was learnt off a model that another stage goes on with."""
    is_last = stage.number == len(run.stages)
    learnt = Learnt({}, {}) if is_last else capture(plan.model, plan.handle)
    return {"learnt": learnt, "adapter": measure_adapter(plan.handle)}


def _finish_blocks(run: ContinualRun, stage: Stage, plan: Plan, before: Learnt | None) -> dict[str, Any]:
    """Take blocks and magnitudes off a model of sd-lora, drop what earlier blocks explain, and fold the rest into it.

    What is measured from then on is what is saved.
    """
    widths = widths_of(run.config, stage.number)
    first = next(iter(plan.handle.metrics()["modules"].values()))
    absorbed = {} if before is None else {name: (*values, 0.0) for name, values in before.absorbed.items()}
    told = {
        "widths": widths,
        "magnitudes": tuple(first[f"magnitude_{k}"] for k in range(1, len(widths) + 1)),
        "absorbed": absorbed,
    }
    learnt = capture(plan.model, plan.handle, told)
    dropped: tuple[str, ...] = ()
    residuals = fit_residuals(learnt)
    if run.config.continual.drop_below is not None:
        learnt, dropped = absorb_explained(learnt, run.config.continual.drop_below)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RmloraWarning)  # nothing trains by the empty chain
        plan.handle.detach()
        plain = attach(plan.model, chain())
        put_back(learnt.folded(), plan.model, plain)
        adapter = measure_adapter(plain)
        plain.detach()
    return {"learnt": learnt, "residuals": residuals, "dropped": dropped, "adapter": adapter}


def _classes(tasks: Tasks) -> list[int]:
    return [c for task in tasks for c in task]


def _by_part(told: Mapping[str, Any]) -> Row:
    """The Trainer's metrics by the names rows have."""
    found = {}
    for part, prefix in PREFIXES.items():
        for name, value in told.items():
            short = name.removeprefix(prefix)
            if name.startswith(prefix) and "per_second" not in name and short != "runtime":
                found[f"{part}_{short}"] = value
    return found
