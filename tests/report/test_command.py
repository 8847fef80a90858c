"""`rmlora report` on the command line: what it prints, and one line where it cannot."""

from pathlib import Path

import pytest

from tests import runs
from tests.report.fixture import METHODS, FakeStudy


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    FakeStudy(methods={label: METHODS[label] for label in ("LoRA", "RM-LoRA")}, seeds=(0, 1)).write(tmp_path / "study")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_files_that_were_written_are_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.call("report", "study") == 0
    named = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in named] == ["report.html", "report.md", "report.tex"]
    assert all(path.is_file() for path in named)


def test_a_baseline_and_a_place_can_be_chosen(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.call("report", "study", "--baseline", "rm-lora", "--output", "elsewhere") == 0
    assert "Everything is compared with RM-LoRA." in (place / "elsewhere" / "report.md").read_text()
    assert not (place / "study" / "report").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("none",), "is not a folder"),
        ((".",), "holds no rows.jsonl"),
        (("study", "--baseline", "gm-lora"), "not in the study"),
        (("study", "--output", "study/rows.jsonl"), "is a file, not a folder"),
    ],
)
def test_what_cannot_be_reported_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    before = runs.files_of(place)
    assert runs.call("report", *words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert (said.count("\n"), said[:7]) == (1, "error: ")
    assert runs.files_of(place) == before
