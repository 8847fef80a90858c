"""Estimating what a study will take before any of its cells is finished: two steps of each model and task, timed."""

from __future__ import annotations

import math
import tempfile
import time
from statistics import mean

import torch

from rmlora.compare.agenda import Agenda
from rmlora.config import RunConfig
from rmlora.run.plan import make_plan
from rmlora.run.trainer import make_trainer, quieten


def estimate_seconds(agenda: Agenda, workers: int) -> float | None:
    """Estimate the time all open cells take, from one trial for each model and task.

    Methods are taken to cost the same, and workers not to be in each other's way: expect it within a factor of two.

    Args:
        agenda: having looked.
        workers: how many cells are run side by side.

    Returns:
        Seconds; None in mode head, where nearly all time goes into features that are computed once, and of systems of
        several adapters or parties, which take no steps of one kind.

    Raises:
        RmloraError: a model or data set that cannot be had.
    """
    if agenda.study.mode != "whole":
        return None
    trials: dict[tuple[str, str], float] = {}
    total = 0.0
    for cell in agenda.having("open"):
        place = (cell.group.model, cell.group.task)
        if place not in trials:
            trials[place] = cell_seconds(cell.config)
        total += trials[place]
    return (total + agenda.waiting * (mean(trials.values()) if trials else 0.0)) / max(1, workers)


def cell_seconds(config: RunConfig) -> float:
    """Make one run ready, time a step of training and of evaluation, and multiply.

    Args:
        config: complete; nothing is written but a temporary folder.
    """
    restore = quieten()
    try:
        with tempfile.TemporaryDirectory(prefix="rmlora-") as folder:
            begun = time.monotonic()
            plan = make_plan(config.model_copy(update={"output": folder}))
            trainer = make_trainer(plan, [])
            batch = next(iter(trainer.get_train_dataloader()))
            ready = time.monotonic() - begun
            step, forward = _step_seconds(trainer, batch)
    finally:
        restore()
    training, learnt, held = config.training, len(plan.data.train), len(plan.data.eval)
    steps = math.ceil(learnt / training.batch_size)
    evaluated = (held + min(learnt, training.train_eval_examples)) / training.batch_size
    evaluations = math.ceil(training.epochs / training.evaluate_every)
    return ready + training.epochs * steps * step + evaluations * evaluated * forward


def _step_seconds(trainer: object, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Time forward with backward, and forward alone, of one batch; the first of two does not count."""
    model = trainer.model.train()  # type: ignore[attr-defined]
    inputs = trainer._prepare_inputs(batch)  # type: ignore[attr-defined]
    begun = 0.0
    for _ in range(2):
        begun = time.monotonic()
        model(**inputs).loss.backward()
    step, begun = time.monotonic() - begun, time.monotonic()
    with torch.no_grad():
        model(**inputs)
    return step, time.monotonic() - begun
