"""Whether effective rank or orthogonality predict accuracy across cells, beyond what the training loss predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from contrasts import TIER1, read_arms
from scipy.stats import rankdata

MEASURES = {"effective_rank": "effective rank", "orthogonality_excess": "orthogonality loss above its floor"}


@dataclass(frozen=True)
class Correlation:
    """Rank correlations of a measure with accuracy, over runs of one R.

    Attributes:
        r: directions per module.
        runs: how many.
        whole: Spearman's.
        whole_interval: 95%, by resampling arms with all their seeds.
        beyond: partial, the training loss held still.
        beyond_interval: the same.
    """

    measure: str
    r: int
    runs: int
    whole: float
    whole_interval: tuple[float, float]
    beyond: float
    beyond_interval: tuple[float, float]


def correlate_all(resamples: int = 2000) -> list[Correlation]:
    """All measures at every R of tier 1; full fine-tuning is left out, its dW is no product of R directions."""
    found = []
    arms = [arm for arm in read_arms(TIER1) if arm.label != "Full FT"]
    for measure, name in MEASURES.items():
        for r in sorted({arm.setting.r for arm in arms if arm.setting.r is not None}):
            groups = [_values(arm.runs.values(), measure) for arm in arms if arm.setting.r == r]
            found.append(_correlate(name, r, [group for group in groups if len(group)], resamples))
    return found


def _values(rows: Any, measure: str) -> np.ndarray:
    """`(runs, 3)`: the measure, accuracy, training loss."""
    last = [row["last"] for row in rows if row["last"].get(measure) is not None]
    return np.array([[one[measure], one["eval_accuracy"], one["train_loss"]] for one in last])


def _correlate(name: str, r: int, groups: Sequence[np.ndarray], resamples: int) -> Correlation:
    rng = np.random.default_rng(0)
    table = np.concatenate(groups)
    drawn = []
    for _ in range(resamples):
        picked = rng.integers(len(groups), size=len(groups))
        drawn.append(_both(np.concatenate([groups[i] for i in picked])))
    low, high = np.nanpercentile(np.array(drawn), [2.5, 97.5], axis=0)
    whole, beyond = _both(table)
    return Correlation(name, r, len(table), whole, (low[0], high[0]), beyond, (low[1], high[1]))


def _both(table: np.ndarray) -> tuple[float, float]:
    """Spearman's correlation of the first two columns, and the same with the third held still."""
    ranks = rankdata(table, axis=0)
    if (np.ptp(ranks, axis=0) == 0).any():
        return float("nan"), float("nan")
    c = np.corrcoef(ranks.T)
    rest = np.sqrt((1 - c[0, 2] ** 2) * (1 - c[1, 2] ** 2))
    return float(c[0, 1]), float((c[0, 1] - c[0, 2] * c[1, 2]) / rest) if rest > 1e-12 else float("nan")
