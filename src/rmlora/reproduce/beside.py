"""Finding the paper's numbers that belong beside a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rmlora.reproduce.presets import Preset
from rmlora.reproduce.published import Published

Row = dict[str, Any]


def add_published(row: Row, preset: Preset) -> Row:
    """Return a row with the paper's numbers of the same method and r in words, as the report prints them.

    Example:
        >>> from rmlora.reproduce.presets import PRESETS
        >>> row = {"label": "LoRA", "r": 64, "task": "cifar100", "metric": "accuracy"}
        >>> add_published(row, PRESETS["table5"])["published"]
        '78.41, rank 55, orthogonality loss 410.2'
    """
    own = published_of(row, preset)
    if not own:
        return row
    told = [_say(one, str(row.get("metric"))) for one in own]
    other = f" ({own[0].task} in the paper)" if own[0].task != row.get("task") else ""
    return row | {"published": ", ".join(told) + other}


def published_of(row: Row, preset: Preset) -> Sequence[Published]:
    """Return the paper's numbers of a row's method, r and task; of its only task where another stands in."""
    tasks = {one.task for one in preset.published}
    task = row.get("task") if row.get("task") in tasks or len(tasks) != 1 else next(iter(tasks))
    where = (row.get("label"), row.get("r"), task)
    return [one for one in preset.published if (one.label, one.r, one.task) == where]


def _say(one: Published, metric: str) -> str:
    if one.metric in ("rank", "orthogonality_loss"):
        return f"{one.metric.replace('_', ' ')} {one.value:g}"
    value = f"{100 * one.value:.2f}"
    return value if one.metric == metric else f"{one.metric} {value}"
