"""A study's folder as it lies on disk: rows, cells, settings; and a clear line for whatever is missing or damaged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rmlora.compare.arms import Row
from rmlora.compare.predictions import Predictions, read_predictions
from rmlora.errors import DataError
from rmlora.report.row_types import misfit


@dataclass
class StudyFiles:
    """What was found.

    Attributes:
        path: the study's folder.
        spec: study.yaml; empty if it cannot be read.
        rows: of rows.jsonl, in its order.
        problems: one sentence for each thing that is missing or damaged, and what the report does without.
    """

    path: Path
    spec: dict[str, Any]
    rows: list[dict[str, Any]]
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The study's name, or its folder's."""
        named = self.spec.get("name") or next((row["study"] for row in self.rows if row.get("study")), None)
        return str(named or self.path.resolve().name)

    def cell(self, row: Row) -> Path | None:
        """The folder of a row's run, or None if it is gone."""
        named = [self.path / "cells" / str(row["cell"])] if row.get("cell") else []
        if row.get("folder"):
            named += [self.path / str(row["folder"]), self.path / "cells" / Path(str(row["folder"])).name]
            named.append(Path(str(row["folder"])))
        return next((folder for folder in named if folder.is_dir()), None)

    def epochs(self, row: Row) -> list[dict[str, Any]]:
        """The rows of a run's metrics.jsonl; those before the damage if it is damaged."""
        folder = self.cell(row)
        if folder is None:
            return []
        path = folder / "metrics.jsonl"
        if not path.is_file():
            self.note(f"{self.show(path)} is missing: this run has no curves.")
            return []
        return self.lines(path)

    def json(self, path: Path) -> dict[str, Any]:
        """A JSON file's mapping; empty if it is missing or damaged."""
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            self.note(f"{self.show(path)} is no complete JSON: left out.")
            return {}
        return found if isinstance(found, dict) else {}

    def predictions(self, row: Row) -> Predictions | None:
        """A run's predictions, or None."""
        folder = self.cell(row)
        path = None if folder is None else folder / "predictions.safetensors"
        if path is None or not path.is_file():
            if path is not None:
                self.note(f"{self.show(path)} is missing: its comparisons rest on seeds alone.")
            return None
        try:
            return read_predictions(path)
        except DataError as error:
            self.note(f"{error}: its comparisons rest on seeds alone.")
            return None

    def lines(self, path: Path) -> list[dict[str, Any]]:
        """The rows of a JSONL file; lines that are no JSON object are reported and left out."""
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            self.note(f"{self.show(path)} cannot be read ({error.strerror}): left out.")
            return []
        rows = []
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                found = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError):
                found = False
            if isinstance(found, dict):
                rows.append(found)
            elif found is not None:
                self.note(f"{self.show(path)}, line {number}, is no complete JSON object (cut off?): left out.")
        return rows

    def show(self, path: Path) -> str:
        """A path as the reader of the report knows it."""
        return str(path.relative_to(self.path)) if path.is_relative_to(self.path) else str(path)

    def note(self, problem: str) -> None:
        """Remember a problem once."""
        if problem not in self.problems:
            self.problems.append(problem)


def read_study(folder: str | Path) -> StudyFiles:
    """Read a study's folder; nothing is written.

    Args:
        folder: holds rows.jsonl, and study.yaml and cells/ beside it.

    Raises:
        DataError: there is no such folder, no rows.jsonl in it, or no row that can be read.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f'"{path}" is not a folder; give the folder that rmlora compare wrote')
    if not (path / "rows.jsonl").is_file():
        raise DataError(f'"{path}" holds no rows.jsonl, so it is no study, or none of whose runs is finished')
    files = StudyFiles(path, {}, [])
    rows = files.lines(path / "rows.jsonl")
    files.spec = _read_spec(files)
    for row in rows:
        if wrong := misfit(row):
            files.note(f"A row of rows.jsonl cannot be used: {wrong}. It is left out.")
        else:
            files.rows.append(_complete(row, files))
    for failure in sorted(path.glob("cells/*/failed.json")):
        files.note(f"cells/{failure.parent.name} has no result: {files.json(failure).get('error', 'unknown reason')}")
    files.rows.sort(key=lambda row: _place(row, files.spec))
    if not any(row.get("kind", "final") == "final" for row in files.rows):
        first = f" ({files.problems[0]})" if files.problems else ""
        raise DataError(f'"{path / "rows.jsonl"}" holds no finished run{first}; run rmlora compare until it does')
    return files


def _complete(row: dict[str, Any], files: StudyFiles) -> dict[str, Any]:
    """Add what only the run's own result.json tells; say so if the run's folder is gone."""
    folder = files.cell(row)
    if folder is None:
        files.note(f"cells/{row.get('cell', '?')} is gone: its row is used, its curves and predictions are not.")
        return row
    path = folder / "result.json"
    if not path.is_file():
        files.note(f"{files.show(path)} is missing: the row of rows.jsonl is used as it is.")
    whole = {**files.json(path), **{name: value for name, value in row.items() if value is not None}}
    if wrong := misfit(whole):
        files.note(f"{files.show(path)} cannot be used: {wrong}. The row of rows.jsonl is used as it is.")
        return row
    return whole


def _place(row: Row, spec: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where a row stands in the order in which the study names tasks, models and methods."""
    task = _position(str(row["task"]), spec.get("tasks"))
    model = _position(str(row["model"]), spec.get("models"))
    label = str(row.get("label") or row["method"])
    method = _position(label, spec.get("methods"))
    return task, str(row["task"]), model, str(row["model"]), method, label, row.get("r") or 0, row["seed"]


def _position(name: str, entries: Any) -> int:
    """The first entry with this name or label, or whose grid it belongs to; after all others if there is none."""
    known_entries = entries if isinstance(entries, list) else []
    names = [e.get("label") or e.get("name") if isinstance(e, dict) else e for e in known_entries]
    for i, known in enumerate(names):
        if name == known or name.startswith(f"{known} "):
            return i
    return len(names)


def _read_spec(files: StudyFiles) -> dict[str, Any]:
    path = files.path / "study.yaml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
        files.note("study.yaml is missing or no YAML: the report rests on the rows alone.")
        return {}
    return dict(found) if isinstance(found, Mapping) else {}
