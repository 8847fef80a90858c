"""Did masked directions stay, in the sense of the mask's policy?"""

from __future__ import annotations

import torch
from torch import Tensor

from rmlora.doctor.finding import Finding
from rmlora.doctor.steps import Step, Two
from rmlora.doctor.subject import Subject
from rmlora.pairs import Kept
from rmlora.restrict import Only
from rmlora.transforms import MaskDirections

_MEANING = {
    "gradient": "no gradient",
    "update": "no gradient and no movement",
    "state": "no gradient, no movement and no change of the optimizer's moments",
}


def masked_stayed(subject: Subject) -> Finding:
    """Tell whether masked directions got no gradient, and stood still where the policy says so.

    Under "gradient", the paper's, they still move by momentum and weight decay; by how much is told.
    """
    masking = [step for step in subject.taken if step.kept]
    if not masking:
        return Finding(
            "masked directions", "skipped", f"method {subject.plan.config.method} masked none at these steps"
        )
    policy = policy_of(subject)
    wrong = [
        f"{name} at step {step.number + 1}: {what}"
        for step in masking
        for name, kept in step.kept.items()
        if (what := _broken(step, name, kept, policy))
    ]
    masked = sum(int((~side).sum()) for step in masking for kept in step.kept.values() for side in (kept.A, kept.B))
    share = _moved_share(masking)
    seen = f"{masked} rows and columns masked in {len(masking)} steps; policy {policy}: {_MEANING[policy]}"
    values = {"policy": policy, "masked": masked, "moved_share": share}
    if wrong:
        remedy = "something adds gradients or moves factors behind the method's back: another hook, another optimizer"
        return Finding("masked directions", "problem", f"{len(wrong)} times not so: {wrong[0]}", remedy, values)
    told = f"; {share:.0%} of all movement is theirs, by momentum" if policy == "gradient" else ""
    return Finding("masked directions", "ok", seen + told, values=values)


def policy_of(subject: Subject) -> str:
    """Return the strictest policy of the method's masks; a method with a mask of its own kind stops gradients."""
    links = [link.inner if isinstance(link, Only) else link for link in subject.plan.handle.method.links]
    policies = [link.policy for link in links if isinstance(link, MaskDirections)]
    return max(policies, key=list(_MEANING).index, default="gradient")


def _broken(step: Step, name: str, kept: Kept, policy: str) -> str:
    final = step.final[name]
    if final is not None and any(bool(value.any()) for value in _masked(final, kept)):
        return "a masked direction has a gradient"
    if policy == "gradient":
        return ""
    if not _equal(step.before[name], step.after[name], kept):
        return "a masked direction moved"
    if policy == "state":
        before, after = (moments[name] for moments in step.moments)
        for moment, now in after.items():
            was = before.get(moment, (torch.zeros_like(now[0]), torch.zeros_like(now[1])))
            if not _equal(was, now, kept):
                return f"{moment} of a masked direction changed"
    return ""


def _masked(two: Two, kept: Kept) -> tuple[Tensor, Tensor]:
    return two[0][~kept.A], two[1][:, ~kept.B]


def _equal(before: Two, after: Two, kept: Kept) -> bool:
    return all(torch.equal(a, b) for a, b in zip(_masked(before, kept), _masked(after, kept), strict=True))


def _moved_share(steps: list[Step]) -> float:
    """The masked directions' share of all movement, 0 to 1."""
    theirs = whole = 0.0
    for step in steps:
        for name, after in step.after.items():
            moved = (after[0] - step.before[name][0]).abs(), (after[1] - step.before[name][1]).abs()
            whole += float(moved[0].sum() + moved[1].sum())
            if name in step.kept:
                theirs += sum(float(value.sum()) for value in _masked(moved, step.kept[name]))
    return theirs / whole if whole else 0.0
