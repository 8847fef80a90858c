"""Runs for the doctor, and ways to break them that a user might meet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rmlora.config_source import resolve
from rmlora.doctor import trial
from rmlora.doctor.examine import examine
from rmlora.doctor.finding import Finding
from rmlora.doctor.subject import Subject
from tests import runs
from tests.tasks import language_models as lm

Found = dict[str, Finding]


class Ward:
    """Models and data of a folder, and the doctor's visits to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = {"bert": runs.save_bert(folder / "bert"), "deberta": runs.save_deberta(folder / "deberta")}
        self.models |= {"gpt2": lm.save_gpt2(folder / "gpt2"), "llama": lm.save_llama(folder / "llama")}
        self.files = {"pairs": runs.save_pairs(folder), "completions": lm.save_rows(folder / "completions")}

    def settings(self, model: str = "bert", **changes: Any) -> dict[str, Any]:
        is_lm = changes.get("task") == "causal-lm"
        files = self.files["completions" if is_lm else "pairs"]
        limits = {"generation": {"max_new_tokens": 8}} if is_lm else {}
        return runs.settings(self.models[model], files, self.folder / "out", **limits, **changes)

    def subject(self, model: str = "bert", **changes: Any) -> Subject:
        return trial.try_run(resolve(self.settings(model, **changes)))

    def visit(self, model: str = "bert", **changes: Any) -> Found:
        return by_name(examine(self.subject(model, **changes)))


def by_name(findings: list[Finding]) -> Found:
    return {finding.check: finding for finding in findings}


def troubles(found: Found) -> dict[str, str]:
    """What is not as it should be: verdicts by check."""
    return {name: f.verdict for name, f in found.items() if f.verdict in ("warning", "problem")}


def after_planning(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """Change the plan of the coming run before it is trained."""
    make = trial.make_plan

    def changed(config: Any) -> Any:
        plan = make(config)
        change(plan)
        return plan

    monkeypatch.setattr(trial, "make_plan", changed)
