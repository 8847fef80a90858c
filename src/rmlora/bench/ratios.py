"""What rounds of measurements say: medians with quartiles, of ratios taken within a round."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

AGAINST = (
    ("peft", "floor"),
    ("reference", "floor"),
    ("rmlora", "floor"),
    ("peft", "reference"),
    ("peft", "rmlora"),
    ("reference", "rmlora"),
)
"""The ratios, each as (numerator, denominator)."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles, and how many values there were.

    Args:
        values: at least one. Quartiles lie between values as numpy's default has them.

    Example:
        >>> spread([4.0, 1.0, 3.0, 2.0, 5.0])
        {'median': 3.0, 'low': 2.0, 'high': 4.0, 'n': 5}
    """
    if len(values) == 1:
        low = high = values[0]
    else:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": statistics.median(values), "low": low, "high": high, "n": len(values)}


def seconds_by_round(steps: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return each contender's seconds, in the order of the rounds."""
    found: dict[str, dict[int, float]] = {}
    for step in steps:
        found.setdefault(step["contender"], {})[step["round"]] = step["seconds"]
    return {name: [rounds[index] for index in sorted(rounds)] for name, rounds in found.items()}


def ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Return the spread of every ratio of `AGAINST` whose two contenders were measured.

    Args:
        seconds: by contender; entry i of each was measured in round i.

    Example:
        >>> ratios({"floor": [1.0, 2.0], "peft": [2.0, 4.0]})
        {'peft/floor': {'median': 2.0, 'low': 2.0, 'high': 2.0, 'n': 2}}
    """
    return {
        f"{over}/{under}": spread([a / b for a, b in zip(seconds[over], seconds[under], strict=True)])
        for over, under in AGAINST
        if over in seconds and under in seconds
    }


def hook_shares(steps: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return, for contenders with hooks of rmlora, the spread of the share of a step spent in them."""
    found: dict[str, list[float]] = {}
    for step in steps:
        if step["hooks_s"] is not None:
            found.setdefault(step["contender"], []).append(step["hooks_s"] / step["seconds"])
    return {name: spread(values) for name, values in found.items()}
