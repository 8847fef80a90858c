"""The rows of a study sorted into arms: the same method, task, model and r, over the seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rmlora.errors import ConfigError, nearest

Row = Mapping[str, Any]
Epoch = Literal["best", "last"]
EPOCHS: tuple[Epoch, ...] = ("last", "best")


@dataclass(frozen=True)
class Setting:
    """Where methods are compared: everything but the method.

    Attributes:
        task: its name.
        model: folder or Hub id.
        r: directions per module; None where no arm has any.
    """

    task: str
    model: str
    r: int | None

    def __str__(self) -> str:
        model = "/".join(self.model.rstrip("/").split("/")[-2:])  # of a long path the end says which model it is
        return f"{self.task}, {model}" + ("" if self.r is None else f", r = {self.r}")


@dataclass(frozen=True)
class Arm:
    """One method in one setting.

    Attributes:
        label: the method's display name in this study.
        setting: where.
        runs: its rows by seed.
    """

    label: str
    setting: Setting
    runs: dict[int, Row] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """The metric its runs are judged by."""
        return str(next(iter(self.runs.values()))["metric"])

    def values(self, epoch: Epoch) -> dict[int, float]:
        """The metric by seed; runs that have none are left out."""
        found = {seed: metric_of(row, epoch) for seed, row in self.runs.items()}
        return {seed: value for seed, value in found.items() if not math.isnan(value)}


def metric_of(row: Row, epoch: Epoch) -> float:
    """Read a row's held-out metric at one epoch; NaN if it is not there.

    Example:
        >>> metric_of({"metric": "f1", "best": {"eval_f1": 0.5}, "last": {}}, "best")
        0.5
    """
    found = row.get(epoch) or {}
    value = found.get(f"eval_{row.get('metric')}")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def sort_into_arms(rows: Iterable[Row]) -> list[Arm]:
    """Sort the final rows of a study into arms, in the order in which they first appear.

    A method without directions, such as full fine-tuning, is put into every r of its task and model, so that it can
    be seen beside the others; of two rows with the same seed the later counts.

    Args:
        rows: of rows.jsonl; rows of the search for a learning rate (kind "select") are left out.
    """
    final = [row for row in rows if row.get("kind", "final") == "final"]
    arms: dict[tuple[str, Setting], Arm] = {}
    for row in final:
        for r in _ranks(row, final):
            setting = Setting(str(row.get("task")), str(row.get("model")), r)
            label = label_of(row)
            arms.setdefault((label, setting), Arm(label, setting)).runs[int(row.get("seed", 0))] = row
    order = list(dict.fromkeys(arm.setting for arm in arms.values()))
    return sorted(arms.values(), key=lambda arm: order.index(arm.setting))


def label_of(row: Row) -> str:
    """The name under which a row's method is shown."""
    return str(row.get("label") or row.get("method"))


def choose_baseline(rows: Iterable[Row], named: str | None = None) -> str:
    """Return the label everything is compared with: the one named, or plain LoRA's.

    Args:
        rows: of the study.
        named: a label or a method's name.

    Raises:
        ConfigError: nothing in the study is called so, or it has no LoRA and nothing was named.

    Example:
        >>> choose_baseline([{"method": "gm-lora"}, {"method": "lora", "label": "LoRA"}])
        'LoRA'
    """
    methods: dict[str, str] = {}
    for row in rows:
        methods.setdefault(label_of(row), str(row.get("method")))
    if named in methods:
        return str(named)
    wanted = named or "lora"
    matching = [label for label, method in methods.items() if method == wanted]
    if len(matching) == 1 or (matching and named is None):
        return matching[0]
    if matching:
        raise ConfigError(f'baseline "{named}" is any of {", ".join(matching)}; name one of them')
    if named is None:
        raise ConfigError(f"the study has no lora to compare with; name a baseline: {', '.join(methods)}")
    raise ConfigError(
        f'baseline "{named}" is not in the study{nearest(named, list(methods))}; it has {", ".join(methods)}'
    )


def _ranks(row: Row, rows: Sequence[Row]) -> list[int | None]:
    if row.get("r"):
        return [int(row["r"])]
    same = [other for other in rows if (other.get("task"), other.get("model")) == (row.get("task"), row.get("model"))]
    return [*sorted({int(other["r"]) for other in same if other.get("r")})] or [None]
