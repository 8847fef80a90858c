"""Weight against directions, where a study has run that grid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean

from rmlora.compare.arms import Arm, Setting
from rmlora.compare.effect import points_per_unit
from rmlora.report.curves import is_number
from rmlora.report.document import Block, Figure, Heading
from rmlora.report.panels import draw_heat

Cells = dict[tuple[float, float], float]


def heat_maps(arms: Sequence[Arm]) -> Iterator[Block]:
    """Draw a map for every setting and method that was run with at least two weights and two numbers of directions."""
    number = 0
    for (setting, method), cells in _grids(arms).items():
        weights, directions = (sorted({key[side] for key in cells}) for side in (0, 1))
        if len(weights) < 2 or len(directions) < 2:
            continue
        number += 1
        if number == 1:
            yield Heading("Weight and directions")
        metric = next(arm.metric for arm in arms if arm.setting == setting)
        scale = points_per_unit(metric, list(cells.values()))
        shown = {key: scale * value for key, value in cells.items()}
        caption = f"{method}, {setting}: {metric} at the last epoch, mean over seeds, by weight and directions."
        yield Figure(f"heat-{number}", caption, draw_heat(f"heat-{number}", weights, directions, shown))


def _grids(arms: Sequence[Arm]) -> dict[tuple[Setting, str], Cells]:
    grids: dict[tuple[Setting, str], Cells] = defaultdict(dict)
    for arm in arms:
        row = next(iter(arm.runs.values()))
        args = row.get("method_args") or {}
        weight, directions = args.get("weight"), args.get("directions")
        values = arm.values("last")
        if values and is_number(weight) and is_number(directions):
            grids[arm.setting, str(row["method"])][float(weight), float(directions)] = fmean(values.values())
    return grids
