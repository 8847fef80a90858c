"""What will the whole run take?"""

from __future__ import annotations

import math
from statistics import median

from rmlora.doctor.finding import Finding
from rmlora.doctor.subject import Cost, Subject
from rmlora.run.wording import duration

_FULL = 0.9
_GIB = 2**30


def forecast(subject: Subject) -> Finding:
    """Foretell time and memory of the whole run from these few steps."""
    cost, training = subject.cost, subject.plan.config.training
    if cost is None or not cost.step_seconds:
        return Finding("forecast", "skipped", "no step was timed")
    # The first step warms up.
    step = median(cost.step_seconds[1:] or cost.step_seconds)
    steps = subject.plan.steps_per_epoch * training.epochs
    evaluations = math.ceil(training.epochs / training.evaluate_every)
    examples = num_evaluated(subject)
    seconds = steps * step + evaluations * examples * (cost.eval_seconds or 0.0)
    seen = (
        f"about {duration(seconds)}: {steps} steps of {step:.2g} s, {evaluations} times {examples} examples evaluated"
        f"; {_memory(cost)}; an estimate from {len(cost.step_seconds)} steps"
    )
    values = {
        "seconds": seconds,
        "step_seconds": step,
        "steps": steps,
        "evaluations": evaluations,
        "peak_bytes": cost.peak_bytes,
    }
    if cost.peak_bytes and cost.total_bytes and cost.peak_bytes > _FULL * cost.total_bytes:
        remedy = "a longer batch may not fit: lower training.batch_size and raise training.gradient_accumulation_steps"
        return Finding("forecast", "warning", seen, remedy, values)
    return Finding("forecast", "ok", seen, values=values)


def num_evaluated(subject: Subject) -> int:
    """Count what one evaluation of the run looks at: all held-out parts, and the sample of the training part."""
    plan = subject.plan
    held_out = sum(len(part) for name, part in plan.encoded.items() if name != "train")
    return held_out + min(plan.config.training.train_eval_examples, len(plan.encoded["train"]))


def _memory(cost: Cost) -> str:
    if cost.peak_bytes is None:
        return "memory unknown"
    whole = f" of {cost.total_bytes / _GIB:.1f}" if cost.total_bytes else ""
    what = "of the GPU" if cost.total_bytes else "of the process"
    return f"peak {cost.peak_bytes / _GIB:.1f}{whole} GiB {what}"
