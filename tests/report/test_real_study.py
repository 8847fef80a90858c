"""A study as `rmlora compare` leaves it, reported; and one of its cells deleted behind its back."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from rmlora.compare.reading import read_study
from rmlora.compare.running import compare
from rmlora.report.write import write_report
from tests import runs


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("real")
    train, held_out = runs.save_pairs(place / "pairs")
    told = {
        "name": "tiny",
        "models": [str(runs.save_bert(place / "bert"))],
        "tasks": [{"name": "pairs", "data": {"train": str(train), "eval": str(held_out)}}],
        "methods": ["lora", {"name": "rm-lora", "args": {"directions": 2}}],
        "ranks": [4],
        "seeds": [0, 1],
        "learning_rates": [1e-3],
        "training": {"epochs": 2, "batch_size": 20},
        "output": str(place / "study"),
    }
    (place / "study.yaml").write_text(yaml.safe_dump(told))
    compare(read_study(place / "study.yaml"), workers=0, threads=1, backend="local", console=Console(quiet=True))
    return place / "study"


def test_what_compare_leaves_is_all_a_report_needs(study: Path) -> None:
    written = write_report(study)
    text = written[1].read_text().replace("\\", "")
    assert "could be read" not in text
    assert "rm-lora: no evidence of a difference from lora" in text
    assert "of 16 examples" in text
    names = {path.stem for path in written}
    measured = ("eval", "train", "gap", "loss", "rank", "orthogonality", "penalty", "masked", "scatter", "spectra")
    assert {f"{name}-1" for name in measured} <= names
    rows = [json.loads(line) for line in (study / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        assert f"rmlora train {study}/cells/{row['cell']}/config.yaml" in text
        assert f"| {row['parameters']['trainable']:,} |" in text


def test_a_cell_deleted_behind_its_back_is_named(study: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(study, tmp_path / "study")
    cell = next((copy / "cells").iterdir())
    shutil.rmtree(cell)
    assert f"cells/{cell.name} is gone" in write_report(copy)[1].read_text()
