"""Calibration in the report: the table, the diagram, and what becomes of damaged or missing bins."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmlora.compare.arms import sort_into_arms
from rmlora.compare.calibration import calibrations_of
from rmlora.report.contents import compile_document
from rmlora.report.study_files import read_study
from rmlora.tasks.calibration import reliability_bins
from tests.report.fixture import METHODS, FakeStudy


def calibrated(seed: int, sharpness: float, right: float = 0.8) -> dict[str, Any]:
    """Bins, ECE and Brier of a made-up classifier that says `sharpness` times what it should."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(1.5, 1.2, size=400)
    labels = (rng.random(400) < 1 / (1 + np.exp(-odds))).astype(int)
    logits = np.stack([np.zeros(400), sharpness * odds], axis=1)
    bins = reliability_bins(logits, labels)
    return {"accuracy": right, "ece": 0.05 * sharpness, "brier": 0.2 + 0.1 * sharpness, "reliability": bins}


def write(folder: Path, change: dict[str, Any] | None = None) -> Path:
    """A study of two methods; the second was evaluated as an ensemble too."""
    study = FakeStudy(methods={label: METHODS[label] for label in ("LoRA", "RM-LoRA")}).write(folder)
    rows = [json.loads(line) for line in (study / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        own = calibrated(row["seed"], 2.5)
        row["last"] |= {"eval_ece": own["ece"], "eval_brier": own["brier"]}
        row["reliability"] = own["reliability"]
        if row["label"] == "RM-LoRA":
            row["ensemble"] = {"instances": 8, "average": "logits"} | calibrated(10 + row["seed"], 1.2) | (change or {})
    (study / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return study


def test_the_table_has_every_method_alone_and_as_an_ensemble(tmp_path: Path) -> None:
    document = compile_document(read_study(write(tmp_path / "study")))
    table = next(table for table in document.tables() if table.name == "calibration-1")
    assert table.columns == ("method", "accuracy", "ECE", "Brier")
    assert [row[0] for row in table.rows] == ["LoRA", "RM-LoRA", "RM-LoRA, ensemble of 8"]
    assert table.rows[2][2:] == ("6.00 ± 0.00", "0.3200 ± 0.0000")


def test_the_diagram_shows_ensembles_dashed(tmp_path: Path) -> None:
    document = compile_document(read_study(write(tmp_path / "study")))
    figure = next(figure for figure in document.figures() if figure.name == "reliability-1")
    assert "Dashed" in figure.caption
    assert "RM-LoRA, ensemble of 8" in figure.svg
    assert "stroke-dasharray" in figure.svg


def test_seeds_are_joined(tmp_path: Path) -> None:
    arms = sort_into_arms(read_study(write(tmp_path / "study")).rows)
    alone, joint = calibrations_of(next(arm for arm in arms if arm.label == "RM-LoRA"))
    assert alone.bins is not None
    assert sum(alone.bins["count"]) == 3 * 400
    assert joint.is_ensemble
    assert joint.values["ece"] == pytest.approx([0.06] * 3)


@pytest.mark.parametrize("damage", [{"reliability": None}, {"reliability": {"count": [1]}}, {"reliability": 3}])
def test_damaged_bins_cost_their_line_alone(tmp_path: Path, damage: dict[str, Any]) -> None:
    document = compile_document(read_study(write(tmp_path / "study", damage)))
    figure = next(figure for figure in document.figures() if figure.name == "reliability-1")
    assert "ensemble of 8" not in figure.svg
    assert "LoRA" in figure.svg


def test_a_study_without_bins_has_no_diagram(tmp_path: Path) -> None:
    document = compile_document(read_study(FakeStudy().write(tmp_path / "study")))
    assert not [figure for figure in document.figures() if figure.name.startswith("reliability")]
