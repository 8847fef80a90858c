"""rows.jsonl: one line per finished cell, the same bytes whatever the order in which the cells were run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rmlora.compare.agenda import Agenda
from rmlora.compare.cells import Cell
from rmlora.errors import DataError
from rmlora.files import write_text

Row = dict[str, Any]

# Differs between two runs of the same cell; stands at the end of a row.
TIMES = ("seconds",)
# What of a result is the same for all rows of a study's table, or said elsewhere in the row.
_TAKEN = ("metric", "best", "last", "majority", "examples", "parameters")
# The same, of some runs only.
_TAKEN_IF_THERE = ("reliability", "ensemble", "start")


def row_of(study: str, cell: Cell, result: Row) -> Row:
    """Put a finished cell into one row.

    Args:
        study: its name.
        cell: what was run.
        result: as in its result.json.
    """
    return {
        "study": study,
        "cell": cell.id,
        "kind": cell.kind,
        "model": cell.group.model,
        "task": cell.group.task,
        "label": cell.group.label,
        "method": cell.config.method,
        "method_args": cell.config.method_args,
        "r": cell.group.r,
        "lr": cell.lr,
        "seed": cell.seed,
        **{name: result.get(name) for name in _TAKEN},
        **{name: result[name] for name in _TAKEN_IF_THERE if name in result},
        "folder": f"cells/{cell.id}",
        **{name: result.get(name) for name in TIMES},
    }


def write_rows(agenda: Agenda) -> list[Row]:
    """Write rows.jsonl anew from the cells, sorted by their ids; return the rows."""
    done = sorted(agenda.having("done"), key=lambda cell: cell.id)
    rows = [row_of(agenda.study.name, cell, agenda.results[cell.id]) for cell in done]
    write_text(agenda.store.rows, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return rows


def read_rows(path: Path) -> list[Row]:
    """Read rows.jsonl.

    Raises:
        DataError: it is missing, or a line is cut off; the cells have everything, so it can be had again.
    """
    remedy = "start `rmlora compare` again: it is written anew from the cells"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f'cannot read "{path}": {error.strerror}; {remedy}') from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: cut off or not JSON; {remedy}") from error
    return rows


def without_times(rows: list[Row]) -> list[Row]:
    """Return rows without what differs between two runs of the same cell.

    Example:
        >>> without_times([{"cell": "0f", "seconds": 3.2}])
        [{'cell': '0f'}]
    """
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
