"""Damaged and half-deleted studies: a clear line each, and a report all the same."""

import json
import shutil
from pathlib import Path

import pytest

from rmlora.errors import ConfigError, DataError, RmloraError
from rmlora.report import curves, panels
from rmlora.report.study_files import read_study
from rmlora.report.write import write_report
from tests.report.fixture import METHODS, FakeStudy


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two methods; nothing is drawn, for these tests read what the report says, and drawing takes most of its time."""
    for module in (curves, panels):
        monkeypatch.setattr(module, "draw", lambda name, paint, **options: f'<svg id="{name}"></svg>')
    two = {label: METHODS[label] for label in ("LoRA", "RM-LoRA")}
    return FakeStudy(methods=two).write(tmp_path / "study")


def some_cell(study: Path) -> Path:
    first = json.loads((study / "rows.jsonl").read_text().splitlines()[0])
    return study / first["folder"]


def told(study: Path) -> str:
    """The Markdown report, in which every problem must be named."""
    return write_report(study)[1].read_text().replace("\\", "")


def test_a_whole_study_has_no_problems(study: Path) -> None:
    files = read_study(study)
    assert (files.name, len(files.rows), files.problems) == ("four-methods", 6, [])
    assert "could be read" not in told(study)


def test_rows_come_in_the_order_of_the_study(study: Path) -> None:
    labels = [(row["label"], row["seed"]) for row in read_study(study).rows]
    assert labels == [(label, seed) for label in ("LoRA", "RM-LoRA") for seed in range(3)]


def test_a_cut_off_row_is_named_and_left_out(study: Path) -> None:
    path = study / "rows.jsonl"
    path.write_text(path.read_text()[:-40])
    assert len(read_study(study).rows) == 5
    assert "rows.jsonl, line 6, is no complete JSON object" in told(study)


def test_cut_off_metrics_keep_the_epochs_before(study: Path) -> None:
    path = some_cell(study) / "metrics.jsonl"
    path.write_text(path.read_text()[:-30])
    assert f"cells/{path.parent.name}/metrics.jsonl, line 6, is no complete JSON object" in told(study)


def test_a_deleted_cell_keeps_its_row(study: Path) -> None:
    cell = some_cell(study)
    shutil.rmtree(cell)
    text = told(study)
    assert f"cells/{cell.name} is gone: its row is used, its curves and predictions are not." in text
    assert "6 runs" in text


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("result.json", "result.json is missing: the row of rows.jsonl is used as it is."),
        ("metrics.jsonl", "metrics.jsonl is missing: this run has no curves."),
        ("predictions.safetensors", "predictions.safetensors is missing: its comparisons rest on seeds alone."),
    ],
)
def test_a_half_deleted_cell_is_named(study: Path, name: str, line: str) -> None:
    cell = some_cell(study)
    (cell / name).unlink()
    assert f"cells/{cell.name}/{line}" in told(study)


def test_damaged_files_are_named(study: Path) -> None:
    cell = some_cell(study)
    (cell / "predictions.safetensors").write_bytes(b"\x01\x02")
    (cell / "result.json").write_text('{"last": ')
    (study / "study.yaml").write_text("{: [")
    text = told(study)
    for line in (
        "cannot be read as safetensors",
        "result.json is no complete JSON",
        "study.yaml is missing or no YAML",
    ):
        assert line in text


def test_a_failed_cell_is_named_with_its_reason(study: Path) -> None:
    failed = study / "cells" / "0123456789abcdef"
    failed.mkdir()
    (failed / "failed.json").write_text('{"error": "training diverged"}')
    assert "cells/0123456789abcdef has no result: training diverged" in told(study)


def test_rows_without_what_they_need_are_left_out(study: Path) -> None:
    with (study / "rows.jsonl").open("a") as file:
        file.write('{"task": "rte"}\n[1, 2]\n{"task": "t", "model": "m", "method": "x", "metric": "f1", "seed": "a"}\n')
    text = told(study)
    assert "A row of rows.jsonl cannot be used: it has no model, method, metric, seed. It is left out." in text
    assert "line 8, is no complete JSON object" in text
    assert '"seed" should be a valid integer' in text


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "holds no rows.jsonl"), ("", "holds no finished run"), ("{", "line 1, is no complete JSON")],
)
def test_a_folder_without_runs_is_refused_in_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    if content is not None:
        (folder / "rows.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        write_report(folder)
    assert not (folder / "report").exists()


def test_no_folder_no_baseline_no_place_to_write(study: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        write_report(tmp_path / "none")
    with pytest.raises(ConfigError, match=r'"LoRa" is not in the study .did you mean "LoRA"'):
        write_report(study, baseline="LoRa")
    (tmp_path / "file").write_text("")
    with pytest.raises(RmloraError, match="is a file, not a folder"):
        write_report(study, output=tmp_path / "file" / "report")


@pytest.mark.parametrize(
    ("name", "value"),
    [("metric", [2]), ("lr", []), ("lr", "fast"), ("seconds", []), ("method_args", 1), ("parameters", {"head": "1"})],
)
def test_a_row_of_which_something_is_of_another_type_is_left_out(study: Path, name: str, value: object) -> None:
    path = study / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in ({**rows[0], name: value}, *rows[1:])))
    assert f'A row of rows.jsonl cannot be used: "{name}' in told(study)


def test_a_result_of_which_something_is_of_another_type_is_not_used(study: Path) -> None:
    path = sorted(study.glob("cells/*/result.json"))[0]
    path.write_text('{"command": []}')
    assert 'result.json cannot be used: "command" should be' in told(study)


def test_a_study_whose_methods_are_no_list_keeps_the_order_of_its_rows(study: Path) -> None:
    (study / "study.yaml").write_text("name: four-methods\nmethods: true\ntasks: 3\n")
    assert "2 methods" in told(study)
