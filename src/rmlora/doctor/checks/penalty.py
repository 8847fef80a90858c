"""Is the penalty there, and counted once?"""

from __future__ import annotations

import math

import torch

from rmlora.doctor.finding import Finding
from rmlora.doctor.penalties import expected_gradients, penalties_of, rewriters_of
from rmlora.doctor.steps import Step
from rmlora.doctor.subject import Subject

_ONCE = 1e-2
"""Relative difference from autograd's gradient that float32 sums may leave."""

LEAST, MOST = 1e-6, 100.0
"""Between these shares of the task's gradient a penalty both acts and leaves the task a say."""


def penalty_counted_once(subject: Subject) -> Finding:
    """Compare what each step added to the gradients with autograd's gradient of the weighted penalty."""
    plan = subject.plan
    links = tuple(plan.handle.method.links) if plan.handle is not None else ()
    steps = [step for step in subject.taken if penalties_of(links, step.number)]
    if not steps:
        return Finding("penalty", "skipped", f"method {plan.config.method} adds none, or its weight is 0")
    if plan.config.training.precision == "fp16":
        return Finding("penalty", "skipped", "a gradient scaler rescales gradients while the penalty is added")
    others = rewriters_of(links)
    if others:
        return Finding("penalty", "skipped", f"{others[0]} rewrites gradients, so what was added cannot be told apart")
    found = [_compare(subject, step) for step in steps]
    found = [row for row in found if row["size"] > 0]
    if not found:
        remedy = "raise the weight; at B = 0 it acts on A alone"
        return Finding("penalty", "problem", f"its gradient is 0 in all {len(steps)} steps", remedy)
    return judge(", ".join(penalties_of(links, steps[0].number)), found)


def judge(name: str, found: list[dict[str, float]]) -> Finding:
    """Say what comparisons mean.

    Args:
        name: of the penalty.
        found: of each step: `size`, its squared gradient by autograd; `times` this was added; `error`, what else was
            added, relative; `share`, its norm over that of the task's gradient.
    """
    worst = max(found, key=lambda row: abs(row["times"] - 1) + row["error"])
    share = found[-1]["share"]  # at the first step the other factor may be zero, and with it the task's gradient
    values = {"times": worst["times"], "error": worst["error"], "share": share}
    if worst["times"] < 0.5 * _ONCE:
        remedy = "the method is not attached to this optimizer: rmlora.attach(model, method, optimizer=...)"
        return Finding("penalty", "problem", f"{name}: nothing of its gradient reached the optimizer", remedy, values)
    if abs(worst["times"] - 1) > _ONCE:
        remedy = "take it out of the loss, or attach once: it is added at the optimizer step already"
        seen = f"{name}: added {worst['times']:.3g} times (its gradient by autograd is once)"
        return Finding("penalty", "problem", seen, remedy, values)
    if worst["error"] > _ONCE:
        seen = f"{name}: what was added differs from autograd's gradient by {worst['error']:.1%}"
        return Finding("penalty", "problem", seen, "something else adds to the gradients at the optimizer step", values)
    apart = max(worst["error"], abs(worst["times"] - 1))
    told = f"{share:.1e} of the task's gradient" if share < math.inf else "the task has no gradient here yet"
    seen = f"{name}: added once (to {apart:.0e}), {told}"
    if share < math.inf and not LEAST <= share <= MOST:
        remedy = f"change the weight: between {LEAST:g} and {MOST:g} of the task's gradient both act"
        return Finding("penalty", "warning", seen, remedy, values)
    return Finding("penalty", "ok", seen, values=values)


def _compare(subject: Subject, step: Step) -> dict[str, float]:
    handle = subject.plan.handle
    seed = subject.plan.config.training.seed
    expected = expected_gradients(tuple(handle.method.links), handle.pairs, step, seed)
    product = size = added_size = task_size = rounding = 0.0
    for name, wanted in expected.items():
        final, task = step.final[name], step.task[name]
        if final is None or task is None:
            continue
        for want, last, own in zip(wanted, final, task, strict=True):
            own = own.double().flatten(1)
            # A mask that acts at the step itself takes the task's gradient out too.
            added = torch.where(want.ne(0), last.double().flatten(1) - own, 0.0)
            product += float((added * want).sum())
            size += float(want.square().sum())
            added_size += float(added.square().sum())
            task_size += float(own.square().sum())
            rounding += float((own * 1.2e-7).square().sum())
    return _ratios(product, size, added_size, task_size, rounding)


def _ratios(product: float, size: float, added: float, task: float, rounding: float) -> dict[str, float]:
    if size == 0.0:
        return {"size": 0.0, "times": 0.0, "error": 0.0, "share": 0.0}
    apart = max(added - 2 * product + size - 4 * rounding, 0.0) if abs(product / size - 1) <= _ONCE else 0.0
    return {
        "size": size,
        "times": product / size,
        "error": math.sqrt(apart / size),
        "share": math.sqrt(size / task) if task > 0 else math.inf,
    }
