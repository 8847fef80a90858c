"""Does everything learn that should: B, A, the head; and does the optimizer know of it?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rmlora.doctor.finding import Finding
from rmlora.doctor.subject import Subject
from rmlora.pairs import Pair

_NAMES = {"VERA": ("d", "b")}


def factors_moved(subject: Subject) -> Finding:
    """Tell whether B moved in every module, and A as soon as B is no longer zero."""
    pairs = subject.plan.pairs
    if not pairs:
        return Finding("B moved", "skipped", f"method {subject.plan.config.method} has no adapter")
    first, second = _NAMES.get(pairs[0].kind, ("A", "B"))
    still_A, still_B = ([pair.name for pair in pairs if not _moved(subject, pair, side)] for side in (0, 1))
    seen = (
        f"{second} moved in {len(pairs) - len(still_B)} of {len(pairs)} modules, {first} in {len(pairs) - len(still_A)}"
    )
    values = {"modules": len(pairs), "still_A": len(still_A), "still_B": len(still_B)}
    if not still_A and not still_B:
        return Finding("B moved", "ok", seen, values=values)
    idle = [pair.name for pair in pairs if all(step.final.get(pair.name) is None for step in subject.taken)]
    if max((step.lr for step in subject.taken), default=0.0) == 0.0:
        return Finding("B moved", "problem", f"{seen}; the learning rate is 0", "set training.lr", values)
    if idle:
        remedy = "requires_grad is off, or forward never calls them: leave them out of lora.target_modules"
        return Finding("B moved", "problem", f"{seen}; no gradient reaches {_few(idle)}", remedy, values)
    if still_B:
        remedy = "the optimizer does not move it: look at training.optimizer and at what shards the model"
        return Finding("B moved", "problem", f"{seen}; it stands still in {_few(still_B)}", remedy, values)
    return Finding(
        "B moved", "warning", f"{seen}; {first} stands still in {_few(still_A)}", "raise training.lr", values
    )


def _moved(subject: Subject, pair: Pair, side: int) -> bool:
    """Whether a factor moved, or was not to: masked as a whole, or waiting for the other to leave zero."""
    steps = [
        s
        for s in subject.taken
        if pair.name not in s.kept or bool((s.kept[pair.name].A, s.kept[pair.name].B)[side].any())
    ]
    if not steps or (side == 0 and len(steps) == 1):
        return bool(subject.taken)
    return any(not torch.equal(s.before[pair.name][side], s.after[pair.name][side]) for s in steps)


def head_learns(subject: Subject) -> Finding:
    """Tell whether every new module is free and has a gradient at every step."""
    plan = subject.plan
    if not plan.heads:
        return Finding("head learns", "skipped", "no module is new")
    learning: list[str] = []
    frozen: list[str] = []
    for name, parameter in plan.model.named_parameters():
        inside = [head for head in plan.heads if f".{head}." in f".{name}."]
        if inside and ".original_module." not in name and "lora_" not in name and ".base_layer." not in name:
            (learning if parameter.requires_grad else frozen).append(name)
    if frozen or not learning:
        seen = f"frozen: {_few(frozen)}" if frozen else f"nothing of {_few(plan.heads)} is trained"
        return Finding("head learns", "problem", seen, "a new module must be trained whole: set requires_grad")
    dead = [name for name in learning if any(not step.others.get(name) for step in subject.taken)]
    if dead and any(plan.handle is not None and plan.handle.method.freezes_head(step.number) for step in subject.taken):
        return Finding(
            "head learns",
            "warning",
            "the method zeroes the head's gradient, as the authors' code does",
            "frozen_head=false",
        )
    if dead:
        return Finding(
            "head learns", "problem", f"gradient zero or absent: {_few(dead)}", "is its output part of the loss?"
        )
    least = (
        min(float(step.others[name] or 0.0) for step in subject.taken for name in learning) if subject.taken else 0.0
    )
    return Finding(
        "head learns", "ok", f"{', '.join(plan.heads)}: {len(learning)} parameters, gradient norms from {least:.1e}"
    )


def optimizer_holds_all(subject: Subject) -> Finding:
    """Tell whether every trainable parameter is in the optimizer, once."""
    named = {name: p for name, p in subject.plan.model.named_parameters() if p.requires_grad}
    held = [id(p) for group in subject.optimizer.param_groups for p in group["params"]]
    lost = [name for name, p in named.items() if id(p) not in set(held)]
    if lost:
        return Finding(
            "optimizer",
            "problem",
            f"{len(lost)} of {len(named)} trainable parameters are not in it: {_few(lost)}",
            "build it from model.parameters() after the adapter is on the model",
            {"lost": lost},
        )
    if len(held) != len(set(held)):
        return Finding("optimizer", "problem", "it holds a parameter twice", "give every parameter to one group")
    return Finding("optimizer", "ok", f"{type(subject.optimizer).__name__} holds all {len(named)} trainable parameters")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
