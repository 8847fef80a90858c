"""`rmlora doctor` as a user meets it."""

import json
import tempfile
from pathlib import Path

import pytest

from tests import runs


def test_a_table_or_json_an_exit_code_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs.settle(tmp_path / "here", monkeypatch)
    (folder / "out").mkdir()
    (folder / "out" / "result.json").write_text("{}")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = runs.files_of(folder)
    assert runs.call("doctor", "run.yaml", "lora.r=4") == 0
    shown = capsys.readouterr().out
    assert "B moved in 12 of 12 modules" in shown
    assert "an estimate from 3 steps" in " ".join(shown.replace("│", " ").split())
    assert "No problem, no warning." in shown
    assert runs.call("doctor", "run.yaml", "lora.r=4", "lora_alpha=1024", "--json") == 1
    check_json(capsys.readouterr().out)
    assert runs.files_of(folder) == before
    assert not list((tmp_path / "temporary").iterdir())


def check_json(out: str) -> None:
    told = json.loads(out)
    assert told["verdict"] == "problem"
    scale = next(finding for finding in told["findings"] if finding["check"] == "scale")
    assert scale["values"]["most"] == 256
    assert scale["remedy"].startswith("lora.scale=2")
    assert told["config"]["output"] == "out"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.yaml"], 'no config file "nowhere.yaml"'),
        (["run.yaml", "lerning_rate=1"], 'unknown setting "lerning_rate"'),
        (["run.yaml", "scope=head"], "it takes seconds"),
        (["run.yaml", "training.report_to=[nothing]"], "is no tracker"),
        (["run.yaml", "data.train=other.jsonl"], 'no data file "other.jsonl"'),
        (["run.yaml", "--jsn"], "--jsn"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs.settle(tmp_path, monkeypatch)
    capsys.readouterr()
    assert runs.call("doctor", *words) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.count("\n") == 1
    assert not told.out
    assert not (tmp_path / "out").exists()


def test_a_launcher_of_several_processes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.settle(tmp_path, monkeypatch)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert runs.call("doctor", "run.yaml") == 2
    assert "start it without torchrun" in capsys.readouterr().err
