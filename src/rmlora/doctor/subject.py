"""What the checks look at: a run after three of its steps, and what became of its adapter on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rmlora.doctor.steps import Step
from rmlora.run.plan import Plan


@dataclass(frozen=True)
class Saved:
    """The adapter, saved and loaded again.

    Attributes:
        lacking: trainable parameters beside the adapter that the file does not hold, or holds with other values.
        num_whole: parameters beside the adapter that it holds as they are.
        silent: modules whose saved update is exactly zero.
        gap: largest difference between the outputs of the model in training and of the one loaded by PEFT alone, over
            the largest output.
        merge_gap: the same between the loaded model and itself merged; None without an adapter.
        failure: why it could not be loaded; empty if it could.
    """

    lacking: tuple[str, ...] = ()
    num_whole: int = 0
    silent: tuple[str, ...] = ()
    gap: float = 0.0
    merge_gap: float | None = None
    failure: str = ""


@dataclass(frozen=True)
class Cost:
    """What was measured of time and memory.

    Attributes:
        step_seconds: of each optimizer step.
        eval_seconds: per held-out example (windows, for question answering).
        peak_bytes: most memory in use during the steps; None where it cannot be told.
        total_bytes: memory of the device; None on a CPU.
        device: where.
    """

    step_seconds: tuple[float, ...]
    eval_seconds: float | None
    peak_bytes: int | None
    total_bytes: int | None
    device: str


@dataclass(frozen=True)
class Subject:
    """A run after its first steps.

    Attributes:
        plan: the run; its model has been trained for these steps.
        steps: what was seen of each.
        losses: of each, as the trainer logs them.
        optimizer: that trained them; None if none was built.
        failure: what stopped the steps; empty if nothing did.
        warned: what rmlora itself warned of meanwhile.
        evaluated: what the trainer's evaluation of some held-out examples returned, or what stopped it.
        num_evaluated: how many.
        padding_gap: largest difference that padding makes to an output, over the largest output; None if not tried.
        saved: the adapter on disk; None after a failure.
        cost: time and memory; None after a failure.
    """

    plan: Plan
    steps: tuple[Step, ...] = ()
    losses: tuple[float, ...] = ()
    optimizer: Any = None
    failure: str = ""
    warned: tuple[str, ...] = ()
    evaluated: Mapping[str, float] | str = ""
    num_evaluated: int = 0
    padding_gap: float | None = None
    saved: Saved | None = None
    cost: Cost | None = None

    @property
    def taken(self) -> tuple[Step, ...]:
        """The steps that the optimizer took."""
        return tuple(step for step in self.steps if step.taken)
