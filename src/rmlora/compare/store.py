"""The folder of a study: what lies in it is all that is known, and says what is left to do."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rmlora.compare import claims
from rmlora.compare.cells import Cell
from rmlora.config_source import dump
from rmlora.errors import DivergedError, RmloraError
from rmlora.files import write_text
from rmlora.run.folder import RunFolder, checkpoint_step

State = Literal["open", "done", "failed", "diverged"]

# Written about a cell, not by its run.
_ABOUT = ("claim.json", "log.txt", "failed.json", "files.json", ".takeover")
_OF_OTHERS = (".claim-", ".clock-")  # what processes that would like the cell hold for a moment


@dataclass(frozen=True)
class Store:
    """The folder of a study.

    Attributes:
        path: it need not exist yet.
    """

    path: Path

    @property
    def study(self) -> Path:
        """The study as it was last started."""
        return self.path / "study.yaml"

    @property
    def rows(self) -> Path:
        """One line per finished cell."""
        return self.path / "rows.jsonl"

    @property
    def chosen(self) -> Path:
        """The learning rate of each group, and what it was chosen by."""
        return self.path / "chosen.json"

    @property
    def jobs(self) -> Path:
        """How the jobs of a coordinator ended, until it has read it."""
        return self.path / "jobs"

    @property
    def environment(self) -> Path:
        """Versions, machine, and hashes of models and data."""
        return self.path / "environment.json"

    def folder(self, cell: Cell) -> Path:
        """Where a cell is run."""
        return self.path / "cells" / cell.id

    def claim(self, cell: Cell) -> Path:
        """Who runs it."""
        return self.folder(cell) / "claim.json"

    def log(self, cell: Cell) -> Path:
        """Everything its run said; what an earlier attempt said stays above."""
        return self.folder(cell) / "log.txt"

    def failure(self, cell: Cell) -> Path:
        """Why it has no result."""
        return self.folder(cell) / "failed.json"

    def state(self, cell: Cell) -> State:
        """Say what has become of a cell; one that is damaged or half deleted is open again."""
        if (self.folder(cell) / "result.json").is_file():
            return "done" if self.damage(cell) is None else "open"
        failure = read_record(self.failure(cell))
        if failure is None:
            return "open"
        return "diverged" if failure.get("diverged") else "failed"

    def damage(self, cell: Cell) -> str | None:
        """Say what is wrong with a cell that has a result; None if it is whole."""
        folder = self.folder(cell)
        result = read_record(folder / "result.json")
        if result is None or not {"best", "last", "metric"} <= result.keys():
            return "result.json is cut off"
        listed = read_record(folder / "files.json")
        for name, size in (listed or dict.fromkeys(("config.yaml", "metrics.jsonl"))).items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if size is not None and path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
        return None

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """Return what a finished cell found, or None."""
        return read_record(self.folder(cell) / "result.json") if self.state(cell) == "done" else None

    def steps(self, cell: Cell) -> int:
        """Return the step of an open cell's last checkpoint, from which it would go on; 0 without one."""
        checkpoint = RunFolder(self.folder(cell)).checkpoint()
        return 0 if checkpoint is None else checkpoint_step(checkpoint)

    def prepare(self, cell: Cell) -> Path:
        """Make a claimed cell's folder ready: an earlier attempt's checkpoint stays if it is sound, else nothing does.

        Returns:
            The folder; it holds the cell's configuration.
        """
        folder = self.folder(cell)
        config = dump(cell.config.model_copy(update={"output": str(folder)}))
        self.failure(cell).unlink(missing_ok=True)
        if not _can_go_on(RunFolder(folder)):
            for path in folder.iterdir():
                if path.name not in _ABOUT and not path.name.startswith(_OF_OTHERS):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / "files.json").unlink(missing_ok=True)
        write_text(folder / "config.yaml", config)
        return folder

    def finish(self, cell: Cell, keep_weights: str) -> None:
        """Drop what a finished cell needs no more, and note what the rest must look like."""
        folder, result = self.folder(cell), read_record(self.folder(cell) / "result.json") or {}
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        is_adapter = (folder / "adapter_model.safetensors").is_file()
        if keep_weights == "none" or (keep_weights == "adapters" and not is_adapter):
            for name in result.get("files", []):
                (folder / Path(name).name).unlink(missing_ok=True)
        sizes = {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file() and p.name not in _ABOUT}
        sizes = {name: size for name, size in sizes.items() if not name.startswith(".")}
        write_text(folder / "files.json", json.dumps(sizes, indent=2) + "\n")

    def fail(self, cell: Cell, error: BaseException | str) -> None:
        """Note why a cell has no result."""
        known = isinstance(error, (str, RmloraError))
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        told = {"error": " ".join(reason.split())[:500], "diverged": isinstance(error, DivergedError)}
        write_text(self.failure(cell), json.dumps(told, indent=2) + "\n")

    def reason(self, cell: Cell) -> str:
        """Return why a cell failed."""
        return str((read_record(self.failure(cell)) or {}).get("error", "for a reason that was not noted"))

    def is_held(self, cell: Cell) -> bool:
        """Whether a living process works on it."""
        return claims.is_live(self.claim(cell))


def _can_go_on(run: RunFolder) -> bool:
    """Whether a cell's last checkpoint, and the rows up to it, are all there; a system checks its own progress."""
    if run.progress.is_file() and run.environment.is_file() and not run.result.exists():
        return True
    checkpoint = run.checkpoint()
    if checkpoint is None or run.result.exists() or not run.environment.is_file():
        return False
    step = checkpoint_step(checkpoint)
    rows = [row for row in run.rows() if row.get("step", step + 1) <= step]
    is_whole = [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    return bool(rows) and is_whole and rows[-1]["step"] == step


def read_record(path: Path) -> dict[str, Any] | None:
    """Return what a JSON file of a study holds; None where it is missing, cut short or no object."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None
