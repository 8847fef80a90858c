"""What a row of rows.jsonl may hold: each value that a report reads, with its type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

Number = int | float


class _Examples(BaseModel):
    """How many were seen."""

    model_config = ConfigDict(strict=True, extra="ignore")

    eval: int | None = None


class _Row(BaseModel):
    """Types are taken as they are: "3" is no number, and 3.0 no seed. Values that no report reads may be anything."""

    model_config = ConfigDict(strict=True, extra="ignore")

    task: str
    model: str
    method: str
    metric: str
    seed: int
    kind: str = "final"
    label: str | None = None
    cell: str | None = None
    folder: str | None = None
    study: str | None = None
    command: str | None = None
    r: int | None = None
    lr: Number | None = None
    seconds: Number | None = None
    majority: Number | None = None
    method_args: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    examples: _Examples | None = None
    parameters: dict[str, Number] | None = None
    reliability: dict[str, Any] | None = None


def misfit(row: Mapping[str, Any]) -> str | None:
    """Say what of a row is missing or of another type than it has to be; None for a row that can be used.

    Example:
        >>> row = {"task": "rte", "model": "m", "method": "lora", "metric": "accuracy", "seed": 0}
        >>> misfit(row), misfit({**row, "seed": "0"})
        (None, '"seed" should be a valid integer')
    """
    try:
        _Row.model_validate(row)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        if missing := [str(one["loc"][-1]) for one in found if one["type"] == "missing"]:
            return f"it has no {', '.join(missing)}"
        first = found[0]
        name = ".".join(str(part) for part in first["loc"] if part not in ("int", "float"))
        return f'"{name}" {first["msg"].removeprefix("Input ")}'
    return None
