"""What was asked before the runs, as pairs of arms, and what the paired differences say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rmlora.compare.arms import Arm, sort_into_arms
from rmlora.compare.statistics import Interval, holm, pair_by_seed, paired_p_value, t_interval

HERE = Path(__file__).resolve().parent
TIER1, STRENGTH, ABLATIONS = "tier1-methods", "tier1-strength", "tier1-ablations"
FEW_SHOT = ("banking77-4", "banking77-16", "banking77-32", "rte-256", "cola-1000")
SIZES = {"banking77-4": 4, "banking77-16": 16, "banking77-32": 32}  # examples of each class
CURVES_ALONE = ("banking77-4", "banking77-32")  # no core of their own
MANY_ASKED = "Is R = 64 with 8 kept better?"
KINDS = ("core", "curve", "wide", "wide-lora", "weight", "faster", "head", "others", "decay")


@dataclass(frozen=True)
class Side:
    """One arm by name.

    Attributes:
        block: the study its rows are of.
        label: of the method there.
        r: directions per module; None for a method without.
    """

    block: str
    label: str
    r: int | None


@dataclass(frozen=True)
class Contrast:
    """A question of one setting: does the first side score higher than the second?"""

    question: str
    where: str
    first: Side
    second: Side


@dataclass(frozen=True)
class Finding:
    """What the runs say.

    Attributes:
        contrast: what was asked.
        difference: first minus second, paired by seed, in points, with its 95% t interval.
        p_value: of the paired t test.
        p_adjusted: after Holm, over all findings of the page.
        seeds: how many pairs.
    """

    contrast: Contrast
    difference: Interval
    p_value: float
    seeds: int
    p_adjusted: float = float("nan")

    @property
    def verdict(self) -> str:
        """Better, worse or no evidence, after Holm at 5%."""
        if not self.p_adjusted <= 0.05:
            return "no evidence"
        return "better" if self.difference.estimate > 0 else "worse"


@cache
def read_arms(block: str) -> list[Arm]:
    """The arms of a block; none where it has not been run. Full fine-tuning is in every r."""
    path = HERE / "rows" / block / "rows.jsonl"
    return sort_into_arms(map(json.loads, path.read_text().splitlines())) if path.is_file() else []


def find_arm(side: Side) -> Arm | None:
    """The arm a side names, if it was run."""
    arms = (arm for arm in read_arms(side.block) if arm.label == side.label)
    return next((arm for arm in arms if side.r is None or arm.setting.r == side.r), None)


def few_shot_blocks(task: str) -> list[str]:
    """The blocks of a task that have been run."""
    blocks = [f"tier2-{task}-{kind}" for kind in KINDS]
    return [block for block in blocks if (HERE / "rows" / block / "rows.jsonl").is_file()]


def few_shot_arms(task: str) -> list[Arm]:
    """All arms of a task; where R is not 8 the label says so, for r is otherwise alike."""
    arms = [arm for block in few_shot_blocks(task) for arm in read_arms(block)]
    return [
        arm if arm.setting.r in (8, None) else Arm(f"{arm.label}, R = {arm.setting.r}", arm.setting, arm.runs)
        for arm in arms
    ]


def contrasts() -> Iterator[Contrast]:
    """All that was asked, in the order of the page."""
    for r in (8, 16, 32, 64):
        for question, first, second in (
            ("Does the penalty help?", "R-LoRA", "LoRA"),
            ("Does the mask help?", "GM-LoRA", "LoRA"),
            ("Do both together?", "RM-LoRA", "LoRA"),
            ("Does the mask add to the penalty?", "RM-LoRA", "R-LoRA"),
            ("Are the defaults better than LoRA?", "RM-LoRA, defaults", "LoRA"),
        ):
            yield Contrast(question, f"classification layer, R = {r}", Side(TIER1, first, r), Side(TIER1, second, r))
    many = Side(STRENGTH, "RM-LoRA weight=0.0001 directions=0.125", 64)
    for r in (8, 64):
        plain = Side(STRENGTH, "RM-LoRA weight=0 directions=1", r)  # strength zero is LoRA, bit for bit
        yield Contrast(MANY_ASKED, f"classification layer, than LoRA R = {r}", many, plain)
    for task in FEW_SHOT:
        yield from _few_shot_contrasts(task)


def _few_shot_contrasts(task: str) -> Iterator[Contrast]:
    core, wide = f"tier2-{task}-{'curve' if task in CURVES_ALONE else 'core'}", f"tier2-{task}-wide"
    faster, head, others, decay = (f"tier2-{task}-{kind}" for kind in ("faster", "head", "others", "decay"))
    for question, first, second in (
        ("Does the penalty help?", Side(core, "R-LoRA", 8), "LoRA"),
        ("Does the mask help?", Side(core, "GM-LoRA", 8), "LoRA"),
        ("Do both together?", Side(core, "RM-LoRA", 8), "LoRA"),
        ("Is the mask more than a smaller learning rate?", Side(core, "GM-LoRA", 8), "LoRA, rate x 0.71"),
        ("Does a rate that makes up for the mask help?", Side(faster, "GM-LoRA, rate x 1.41", 8), "LoRA"),
        ("Does a rate that makes up for the mask help?", Side(faster, "RM-LoRA, rate x 1.41", 8), "LoRA"),
        ("Does the authors' frozen head matter?", Side(head, "RM-LoRA, frozen head", 8), "RM-LoRA"),
        ("Is it more than weight decay?", Side(core, "RM-LoRA", 8), None),
        ("Is another method better than LoRA?", Side(others, "LoRA Dropout", 8), "LoRA"),
        ("Is another method better than LoRA?", Side(others, "SoRA", 8), "LoRA"),
        ("Is another method better than LoRA?", Side(others, "AdaLoRA", 8), "LoRA"),
        ("Is another method better than LoRA?", Side(others, "PoLAR", 8), "LoRA"),
        ("Do the authors' or the strict rules differ?", Side(others, "RM-LoRA authors", 8), "RM-LoRA"),
        ("Do the authors' or the strict rules differ?", Side(others, "RM-LoRA strict", 8), "RM-LoRA"),
    ):
        against = Side(decay, "LoRA, weight decay 0.1", 8) if second is None else Side(core, second, 8)
        yield Contrast(question, f"{task}, R = 8", first, against)
    many = Side(wide, "RM-LoRA, 8 kept", 64)
    yield Contrast(MANY_ASKED, f"{task}, than RM-LoRA R = 8", many, Side(core, "RM-LoRA", 8))
    yield Contrast(MANY_ASKED, f"{task}, than LoRA R = 8", many, Side(core, "LoRA", 8))
    heavier = Side(f"tier2-{task}-weight", "RM-LoRA, 8 kept, weight 1.6e-3", 64)
    yield Contrast("Does a weight that grows with R help?", f"{task}, R = 64", heavier, many)
    yield Contrast(MANY_ASKED, f"{task}, than LoRA R = 64", many, Side(f"{wide}-lora", "LoRA", 64))


def find_all() -> list[Finding]:
    """Compare whatever has been run, and adjust for looking at all of it together."""
    found = []
    for contrast in contrasts():
        first, second = find_arm(contrast.first), find_arm(contrast.second)
        if first is None or second is None:
            continue
        seeds, differences = pair_by_seed(first.values("last"), second.values("last"))
        if len(seeds) > 1:
            points = 100 * differences
            found.append(Finding(contrast, t_interval(points), paired_p_value(points), len(seeds)))
    adjusted = holm([one.p_value for one in found])
    return [
        Finding(one.contrast, one.difference, one.p_value, one.seeds, p) for one, p in zip(found, adjusted, strict=True)
    ]
