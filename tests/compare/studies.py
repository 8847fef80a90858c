"""A study small enough for a test: one tiny encoder, forty pairs of sentences, one epoch."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from rmlora.compare import claims
from rmlora.compare.agenda import Agenda
from rmlora.compare.cells import Cell
from rmlora.compare.reading import make_study
from rmlora.compare.store import Store
from rmlora.compare.study import Study
from rmlora.errors import ConfigError

T = TypeVar("T")
RUN = """
import json, sys, torch
from pathlib import Path
from rmlora.compare.reading import read_study
from rmlora.compare.running import compare
more = json.loads(sys.argv[4])
compare(read_study(Path(sys.argv[1])), workers=int(sys.argv[2]), threads=1, backend=sys.argv[3], **more)
"""


def assert_refused(message: str, *where: Any, **changes: Any) -> None:
    """Hold that a study so changed is refused when it is read, in one line that names it."""
    with pytest.raises(ConfigError, match=message) as refused:
        study(*where, **changes)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("study: ")


def settings(model: Path, files: tuple[Path, Path], output: Path, **changes: Any) -> dict[str, Any]:
    """Two methods, two seeds, one rate: four cells of five steps."""
    base: dict[str, Any] = {
        "name": "tiny",
        "models": [str(model)],
        "tasks": [{"name": "pairs", "data": {"train": str(files[0]), "eval": str(files[1]), "max_length": 16}}],
        "methods": ["lora", {"name": "rm-lora", "label": "RM", "args": {"weight": 1e-3}}],
        "ranks": [4],
        "seeds": [0, 1],
        "learning_rates": [1e-2],
        "training": {"epochs": 1, "batch_size": 8, "train_eval_examples": 8},
        "output": str(output),
    }
    return base | changes


def study(model: Path, files: tuple[Path, Path], output: Path, **changes: Any) -> Study:
    return make_study(settings(model, files, output, **changes))


def written(path: Path, told: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(told))
    return path


def agenda(told: Study) -> Agenda:
    return Agenda(told, Store(told.folder)).look()


def cells(told: Study) -> list[Cell]:
    return agenda(told).cells


def started(path: Path, workers: int, backend: str = "local", **more: Any) -> subprocess.Popen[bytes]:
    """Run a study in a process of its own, as a user does."""
    words = [sys.executable, "-c", RUN, str(path), str(workers), backend, json.dumps(more)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def holders(output: Path) -> dict[str, claims.Owner]:
    """The living processes of this machine that hold cells."""
    found = {path.parent.name: claims.read_claim(path) for path in output.glob("cells/*/claim.json")}
    return {cell: owner for cell, owner in found.items() if owner is not None and owner.is_running}


def wait_for(what: Callable[[], T], seconds: float = 300) -> T:
    """Return what is waited for, once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it never came about")


def times(output: Path) -> dict[str, int]:
    """When each cell's result was written."""
    return {p.parent.name: p.stat().st_mtime_ns for p in output.glob("cells/*/result.json")}


def rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]
