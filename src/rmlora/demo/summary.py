"""All runs of one arm in one line, and its paired difference to the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from rmlora.compare.statistics import Interval, t_interval
from rmlora.demo.adaptation import Outcome
from rmlora.demo.recipe import BASELINE


@dataclass(frozen=True)
class Summary:
    """One arm over its seeds.

    Attributes:
        label: the arm.
        outcomes: its runs, in the order of seeds.
        difference: test accuracy minus that of the baseline with the same seed, in points; None for the baseline.
    """

    label: str
    outcomes: tuple[Outcome, ...]
    difference: Interval | None

    @property
    def is_baseline(self) -> bool:
        """Whether the others are compared with this one."""
        return self.label == BASELINE

    @property
    def spread(self) -> float | None:
        """Standard deviation of the test accuracy over seeds; None for a single seed."""
        return stdev(run.test_accuracy for run in self.outcomes) if len(self.outcomes) > 1 else None

    def mean(self, field: str) -> float | None:
        """Return the mean over seeds of a field of `Outcome`; None where the arm has no such number."""
        values = [getattr(run, field) for run in self.outcomes]
        return None if any(value is None for value in values) else fmean(values)


def summarise(outcomes: Sequence[Outcome]) -> list[Summary]:
    """Group the runs by arm, in the order of their first appearance.

    Args:
        outcomes: runs, among them the baseline's with every seed that occurs.
    """
    by_arm: dict[str, dict[int, Outcome]] = {}
    for outcome in outcomes:
        by_arm.setdefault(outcome.label, {})[outcome.seed] = outcome
    baseline = by_arm[BASELINE]
    summaries = []
    for label, runs in by_arm.items():
        differences = [run.test_accuracy - baseline[seed].test_accuracy for seed, run in runs.items()]
        difference = None if label == BASELINE else t_interval(differences)
        summaries.append(Summary(label, tuple(runs.values()), difference))
    return summaries
