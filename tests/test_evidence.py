"""The page of evidence is what its rows give: no number in it is anybody's memory."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_of_evidence_is_made_of_the_committed_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks" / "evidence"), *sys.path])
    report = importlib.import_module("report")
    monkeypatch.setattr(report, "FIGURES", tmp_path)
    told = "\n".join(report.lines()).rstrip() + "\n"
    assert told == (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8"), "run `make evidence-report`"
    drawn = {path.name for path in tmp_path.glob("*.svg")}
    assert drawn == {path.name for path in (ROOT / "docs" / "evidence").glob("*.svg")}
    assert all(f"](evidence/{name})" in told for name in drawn)
