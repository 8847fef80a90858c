"""Two classifiers on the same examples: only those that one gets right and the other wrong say anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class McNemar:
    """The outcome of one exact test.

    Attributes:
        wins: examples that only the method gets right.
        losses: examples that only the baseline gets right.
        p_value: two-sided; 1 where they never disagree; NaN for no examples.
    """

    wins: int
    losses: int
    p_value: float


def mcnemar(correct: Sequence[bool] | NDArray[np.bool_], baseline: Sequence[bool] | NDArray[np.bool_]) -> McNemar:
    """Test whether two classifiers are right equally often, exactly: wins ~ Binomial(wins + losses, 1/2).

    It knows one run of each: what another seed would have done it does not know.

    Args:
        correct: `(n,)`, whether the method is right, example by example.
        baseline: `(n,)`, the same of the baseline on the same examples.

    Raises:
        ValueError: they differ in length.

    Example:
        >>> mcnemar([True, True, True, False], [True, False, False, False])
        McNemar(wins=2, losses=0, p_value=0.5)

    Source:
        McNemar, Psychometrika 12, 1947; the exact binomial form.
    """
    from scipy.stats import binomtest

    ours, theirs = np.asarray(correct, dtype=bool), np.asarray(baseline, dtype=bool)
    if ours.shape != theirs.shape:
        raise ValueError(f"{len(ours)} examples on one side, {len(theirs)} on the other; they must be the same")
    if len(ours) == 0:
        return McNemar(0, 0, math.nan)
    wins, losses = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    if wins + losses == 0:
        return McNemar(0, 0, 1.0)
    return McNemar(wins, losses, float(binomtest(wins, wins + losses).pvalue))
