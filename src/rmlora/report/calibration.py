"""Calibration in a report: its table, and the reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rmlora.compare.arms import Arm
from rmlora.compare.calibration import Calibration, calibrations_of
from rmlora.report.document import Figure, Table
from rmlora.report.drawing import draw
from rmlora.report.number_format import mean_of
from rmlora.report.panels import Styles

_FEW = 5  # examples; a bin of fewer says nothing and would pull the line about


def calibration_table(arms: Sequence[Arm], name: str, scale: float) -> Table | None:
    """Calibration of every method of a setting, alone and as an ensemble; None where nothing was recorded.

    Args:
        arms: of the setting.
        name: of the table.
        scale: what makes points of the metric.
    """
    found = [one for arm in arms for one in calibrations_of(arm) if one.values["ece"] or one.values["brier"]]
    if not found:
        return None
    metric = arms[0].metric
    rows = tuple(
        (
            one.label,
            mean_of(one.values[metric], scale),
            mean_of(one.values["ece"], 100.0),
            mean_of(one.values["brier"], digits=4),
        )
        for one in found
    )
    caption = (
        f"{arms[0].setting}: calibration on the held-out examples, mean ± standard deviation over seeds; of the model "
        "alone at the last epoch, of an ensemble with the weights the run left. ECE: expected calibration error, in "
        "percent, 15 bins. Brier: mean squared error of the probabilities, summed over classes, 0 to 2."
    )
    return Table(name, caption, ("method", metric, "ECE", "Brier"), rows)


def reliability_figure(arms: Sequence[Arm], styles: Styles, name: str) -> Figure | None:
    """Draw how often every method of a setting is right against how sure it is; None where that was not recorded."""
    found = [one for arm in arms for one in calibrations_of(arm) if one.bins is not None]
    if not found:
        return None
    ensembles = " Dashed: the ensemble of a method's instances." if any(one.is_ensemble for one in found) else ""
    caption = (
        "Reliability: share of right answers by how sure the model was, all seeds together; on the thin diagonal is "
        f"who is as often right as he says, below it who is too sure. Bins of fewer than {_FEW} examples are left out."
        f"{ensembles}"
    )
    return Figure(name, caption, draw_reliability(name, found, styles))


def draw_reliability(name: str, found: Sequence[Calibration], styles: Styles) -> str:
    """Draw the reliability diagram; ensembles dashed, with open markers."""

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=axes.spines["left"].get_edgecolor(), linewidth=0.8)
        lowest = 1.0
        for one in found:
            points = _points(one)
            look = {"linestyle": "--", "markerfacecolor": "none"} if one.is_ensemble else {}
            sure, right = [point[0] for point in points], [point[1] for point in points]
            axes.plot(sure, right, label=one.label, **styles[one.method], **look)
            lowest = min([lowest, *sure, *right])
        low = max(0.0, min(lowest - 0.04, 0.9))
        axes.set(xlim=(low, 1.01), ylim=(low, 1.01), aspect="equal")
        axes.set_xlabel("confidence")
        axes.set_title("share of right answers", loc="left")

    return draw(name, paint, height=4.0)


def _points(one: Calibration) -> list[tuple[float, float]]:
    bins = one.bins or {"count": [], "confidence": [], "accuracy": []}
    columns = zip(bins["count"], bins["confidence"], bins["accuracy"], strict=True)
    return [(float(sure), float(right)) for count, sure, right in columns if count >= _FEW]
