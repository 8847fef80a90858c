"""What an arm's runs recorded of calibration: of the model alone, and of the ensemble of its instances."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rmlora.compare.arms import Arm
from rmlora.tasks.calibration import Bins, join_bins

MEASURES = ("ece", "brier")


@dataclass(frozen=True)
class Calibration:
    """One method in one setting, over its seeds, alone or as an ensemble.

    Attributes:
        label: the method's, and of an ensemble how many instances it averages.
        method: the method's label alone.
        is_ensemble: whether instances were averaged.
        values: the metric, `ece` and `brier` by seed; empty where not recorded.
        bins: of all seeds together; None where not recorded.
    """

    label: str
    method: str
    is_ensemble: bool
    values: Mapping[str, Sequence[float]]
    bins: Bins | None


def calibrations_of(arm: Arm) -> list[Calibration]:
    """Collect what the runs of an arm recorded: the model alone first, then its ensemble, if it was evaluated.

    Args:
        arm: its rows may hold `reliability` and `ensemble`; their own last epoch otherwise.
    """
    alone = [
        {name: (row.get("last") or {}).get(f"eval_{name}") for name in (arm.metric, *MEASURES)}
        | {"reliability": row.get("reliability")}
        for row in arm.runs.values()
    ]
    found = [_collect(arm, arm.label, alone, is_ensemble=False)]
    joint = [row["ensemble"] for row in arm.runs.values() if isinstance(row.get("ensemble"), Mapping)]
    sizes = sorted({int(one["instances"]) for one in joint if one.get("instances")})
    if joint:
        size = " or ".join(map(str, sizes)) or "several"
        found.append(_collect(arm, f"{arm.label}, ensemble of {size}", joint, is_ensemble=True))
    return [one for one in found if one.bins is not None or any(one.values[name] for name in MEASURES)]


def _collect(arm: Arm, label: str, rows: Sequence[Mapping[str, Any]], is_ensemble: bool) -> Calibration:
    values = {name: [float(row[name]) for row in rows if _is_number(row.get(name))] for name in (arm.metric, *MEASURES)}
    bins = [row["reliability"] for row in rows if _are_bins(row.get("reliability"))]
    bins = [one for one in bins if len(one["count"]) == len(bins[0]["count"])]
    return Calibration(label, arm.label, is_ensemble, values, join_bins(bins) if bins else None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_bins(found: Any) -> bool:
    if not isinstance(found, Mapping):
        return False
    columns = [found.get(name) for name in ("count", "confidence", "accuracy")]
    return all(isinstance(column, list) for column in columns) and len({len(column) for column in columns}) == 1  # type: ignore[arg-type]
