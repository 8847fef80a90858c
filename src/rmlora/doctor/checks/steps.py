"""Did the steps happen, with numbers that are numbers?"""

from __future__ import annotations

import math

import torch

from rmlora.doctor.finding import Finding
from rmlora.doctor.subject import Subject

_OVERFLOWN = "lower training.lr, or training.precision=fp32 (some models, such as mDeBERTa, overflow fp16)"


def steps_run(subject: Subject) -> Finding:
    """Tell whether the steps could be taken at all."""
    if subject.failure:
        done = len(subject.steps)
        return Finding(
            "steps",
            "problem",
            f"step {done + 1} stopped with {subject.failure}",
            _remedy(subject.failure),
            {"done": done},
        )
    skipped = len(subject.steps) - len(subject.taken)
    seen = f"{len(subject.taken)} of {len(subject.steps)} optimizer steps taken"
    if skipped:
        return Finding(
            "steps",
            "warning",
            f"{seen}; a gradient scaler left {skipped} out",
            "training.precision=bf16 needs no scaler",
        )
    return Finding("steps", "ok", seen, values={"done": len(subject.taken)})


def numbers_finite(subject: Subject) -> Finding:
    """Tell whether losses, gradients and factors are numbers; fp16 is where they stop being ones."""
    losses = [round(loss, 4) for loss in subject.losses]
    broken = [f"loss of step {i + 1}" for i, loss in enumerate(losses) if not math.isfinite(loss)]
    for step in subject.taken:
        for name, two in {**step.final, **step.after}.items():
            if two is not None and not all(bool(torch.isfinite(value).all()) for value in two):
                broken.append(f"{name} at step {step.number + 1}")
        broken += [f"gradient of {n} at step {step.number + 1}" for n, g in step.others.items() if not _is_number(g)]
    if broken:
        return Finding(
            "numbers",
            "problem",
            f"not finite: {broken[0]}{_more(broken)}; losses {losses}",
            _OVERFLOWN,
        )
    return Finding(
        "numbers", "ok", f"losses {', '.join(map(str, losses))}; all gradients finite", values={"losses": losses}
    )


def _remedy(failure: str) -> str:
    if "out of memory" in failure:
        return "lower training.batch_size, or set training.gradient_checkpointing=true"
    if failure.startswith("DivergedError"):
        return _OVERFLOWN
    if failure.startswith("IndexError"):
        return "a text may be longer than the model's positions: lower data.max_length"
    return "look at the settings it names, and at the first batch of the data"


def nothing_warned(subject: Subject) -> Finding:
    """Repeat what rmlora itself warned of while the steps were taken."""
    if not subject.warned:
        return Finding("warnings", "ok", "rmlora gave none")
    return Finding("warnings", "warning", "; ".join(subject.warned), "as it says", {"warned": list(subject.warned)})


def _is_number(value: float | None) -> bool:
    return value is None or math.isfinite(value)


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
