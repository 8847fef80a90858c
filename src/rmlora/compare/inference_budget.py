"""Whether the methods of a setting keep equally many parameters at inference: checked, and said with every number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rmlora.analysis.counts import ParameterCounts, check_same_inference_budget
from rmlora.compare.arms import Arm, Row, Setting, sort_into_arms
from rmlora.errors import ConfigError


@dataclass(frozen=True)
class InferenceBudget:
    """What the methods of one setting keep.

    Attributes:
        setting: task, model and r.
        counts: of every run, by the method's label; empty where none was recorded.
    """

    setting: Setting
    counts: dict[str, tuple[ParameterCounts, ...]]

    @property
    def is_same(self) -> bool:
        """Whether all runs that recorded it keep equally many parameters, head not counted."""
        runs = {f"{label}, run {i}": one for label, found in self.counts.items() for i, one in enumerate(found)}
        try:
            check_same_inference_budget(runs)
        except ConfigError:
            return False
        return True

    @property
    def common(self) -> int:
        """What most methods keep; of equally frequent numbers that of the method named first."""
        every = [_kept(one) for found in self.counts.values() for one in found]
        return Counter(every).most_common(1)[0][0]

    @property
    def differing(self) -> tuple[str, ...]:
        """Labels of the methods of which some run keeps another number."""
        common = self.common
        return tuple(
            label for label, found in self.counts.items() if found and any(_kept(one) != common for one in found)
        )

    def __str__(self) -> str:
        missing = [label for label, found in self.counts.items() if not found]
        unknown = f" Not recorded: {', '.join(missing)}." if missing else ""
        same = [label for label, found in self.counts.items() if found and label not in self.differing]
        kept = f"{self.common:,} parameters at inference, without the head"
        if self.is_same:
            return f"{', '.join(same)} {'all keep' if len(same) > 1 else 'keeps'} {kept}.{unknown}"
        others = "; ".join(_tell(label, self.counts[label]) for label in self.differing)
        if not same:
            return f"no method keeps the same number of parameters as another, without the head: {others}.{unknown}"
        return f"{', '.join(same)} keep{'s' if len(same) == 1 else ''} {kept}. Others do not: {others}.{unknown}"


def inference_budgets(rows: Iterable[Row]) -> list[InferenceBudget]:
    """Collect what is kept in every setting in which methods are compared.

    Methods that do not keep equally many are no error: full fine-tuning keeps every weight, and SoRA and AdaLoRA keep
    what they find. But their numbers are then of another budget, and that has to be said beside them.

    Args:
        rows: of a study; those of the search for a learning rate are left out.

    Returns:
        One for each setting of at least two methods, in the study's order.

    Example:
        >>> def row(label, kept):
        ...     counts = {"adapter": 80, "head": 9, "base": 0, "trainable": 89, "inference": kept + 9}
        ...     return {"label": label, "method": label, "task": "t", "model": "m", "r": 4, "parameters": counts}
        >>> print(*inference_budgets([row("lora", 80), row("rm-lora", 80)]))
        lora, rm-lora all keep 80 parameters at inference, without the head.
        >>> print(*inference_budgets([row("lora", 80), row("sora", 60)]))
        lora keeps 80 parameters at inference, without the head. Others do not: sora 60 (of 80 trained).
    """
    arms = sort_into_arms(rows)
    settings = dict.fromkeys(arm.setting for arm in arms)
    found = [[arm for arm in arms if arm.setting == setting] for setting in settings]
    return [InferenceBudget(own[0].setting, {arm.label: _counts(arm) for arm in own}) for own in found if len(own) > 1]


def budget_lines(rows: Iterable[Row]) -> list[str]:
    """Say of every setting whether its methods keep equally many parameters; nothing where none was recorded."""
    return [f"{one.setting}: {one}" for one in inference_budgets(rows) if any(one.counts.values())]


def _counts(arm: Arm) -> tuple[ParameterCounts, ...]:
    """Read the counts of an arm's runs; those that did not record them are left out."""
    found = [row.get("parameters") or {} for row in arm.runs.values()]
    return tuple(
        ParameterCounts(
            trained_adapter=told["trainable"] - told["head"] - told.get("base", 0),
            kept_adapter=told["inference"] - told["head"] - told.get("base", 0),
            head=told["head"],
            base=told.get("base", 0),
        )
        for told in found
        if {"trainable", "inference", "head"} <= told.keys()
    )


def _kept(count: ParameterCounts) -> int:
    return count.kept_adapter + count.base


def _tell(label: str, counts: Sequence[ParameterCounts]) -> str:
    kept, trained = sorted({_kept(one) for one in counts}), max(one.trained_adapter + one.base for one in counts)
    how_many = f"{kept[0]:,}" if len(kept) == 1 else f"{kept[0]:,} to {kept[-1]:,}"
    if all(one.base and not one.trained_adapter for one in counts):
        return f"{label} {how_many} (the weights themselves are trained)"
    return f"{label} {how_many}" + (f" (of {trained:,} trained)" if kept[0] != trained else "")
