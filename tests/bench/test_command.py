"""`rmlora bench` on the command line: the rows it leaves, and one line where it cannot measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rmlora.bench.settings import CONTENDERS
from rmlora.bench.subjects import SUBJECTS
from tests import runs
from tests.bench.folders import save_config

QUICK = ("--r", "4", "--rounds", "2", "--warmup", "1", "--batch", "2", "--threads", "1")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_config(tmp_path / "model", "bert")
    save_config(tmp_path / "images", "vit")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_measurement_is_a_row_and_the_summary_says_on_what(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--model", "model", "--length", "8", "--directions", "2", "--weight", "1e-3", "--output", "new/rows.jsonl")
    assert runs.call("bench", *QUICK, *given) == 0
    rows = rows_of(place / "new" / "rows.jsonl")
    assert [row["kind"] for row in rows] == ["step"] * 8 + ["memory"] * 4 + ["summary"]
    assert {row["model"] for row in rows} == {"model"}
    keys = {"kind", "model", "round", "position", "contender", "seconds", "cpu_seconds", "hooks_s", "loss"}
    assert all(row.keys() == keys for row in rows[:8])
    assert {(row["round"], row["contender"]) for row in rows[:8]} == {(i, name) for i in (0, 1) for name in CONTENDERS}
    assert all(row.keys() >= {"stays_bytes", "peak_bytes", "excess_bytes"} for row in rows[8:12])
    summary = rows[-1]
    assert summary["settings"]["directions"] == 2
    assert summary["batch_used"]["input_ids"] == [2, 8]
    assert summary["adapted"] == 12
    assert list(summary["seconds"]) == list(summary["memory"]) == list(CONTENDERS)
    assert set(summary["hook_shares"]) == {"reference", "rmlora"}
    assert summary["machine"].keys() >= {"processor", "cores", "threads", "gpus"}
    assert summary["versions"].keys() >= {"rmlora", "torch", "peft", "transformers"}
    assert {"command", "git", "python", "load"} <= summary.keys()
    assert [path.name for path in (place / "new").iterdir()] == ["rows.jsonl"]
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("model: 12 modules", "peft/floor", "reference/rmlora", "new/rows.jsonl"))


def test_what_stays_is_adapter_and_moments_and_the_excess_is_above_the_floor(place: Path) -> None:
    assert runs.call("bench", *QUICK, "--model", "model", "--contenders", "peft,floor") == 0
    rows = rows_of(place / "bench.jsonl")
    found = {row["contender"]: row for row in rows if row["kind"] == "memory"}
    # 2 blocks x (4 projections 16 -> 16, 16 -> 24, 24 -> 16) at r = 4; a value, two moments, and a counter a factor
    adapter = 2 * 4 * (4 * (16 + 16) + 2 * (16 + 24))
    assert found["peft"]["stays_bytes"] == 3 * 4 * adapter + 4 * 2 * 12
    assert found["floor"]["stays_bytes"] == 0
    assert found["floor"]["excess_bytes"] == 0
    above = found["peft"]["peak_bytes"] + found["peft"]["stays_bytes"] - found["floor"]["peak_bytes"]
    assert found["peft"]["excess_bytes"] == above > 0
    assert set(rows[-1]["ratios"]) == {"peft/floor"}


def test_without_a_floor_there_is_no_excess(place: Path) -> None:
    assert runs.call("bench", *QUICK, "--model", "images", "--contenders", "rmlora", "--output", "rows.jsonl") == 0
    rows = rows_of(place / "rows.jsonl")
    assert [row["excess_bytes"] for row in rows if row["kind"] == "memory"] == [None]
    assert rows[-1]["ratios"] == {}
    assert rows[-1]["batch_used"]["pixel_values"] == [2, 1, 8, 8]


@pytest.mark.slow
def test_a_profile_has_a_row_for_every_operator(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.call("bench", *QUICK, "--model", "model", "--contenders", "floor,rmlora", "--profile") == 0
    rows = rows_of(place / "bench.jsonl")
    for name in ("floor", "rmlora"):
        operators = [row for row in rows if row["kind"] == "operator" and row["contender"] == name]
        assert sum(row["share"] for row in operators) == pytest.approx(1)
        assert {"matmul", "elementwise", "rest"} == {row["sort"] for row in operators}
        assert ("aten::_fused_adamw_" in {row["operator"] for row in operators}) == (name == "rmlora")
        assert sum(rows[-1]["operator_shares"][name].values()) == pytest.approx(1)
    shown = capsys.readouterr()
    assert "floor: operators by self time" in shown.out
    assert "matmul " in shown.out


def test_the_list_names_every_model_and_measures_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = runs.files_of(place)
    assert runs.call("bench", "--list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(SUBJECTS)
    assert runs.files_of(place) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "gpt3"), 'no model "gpt3" (did you mean "gpt2"?)'),
        (("--model", "./none"), 'no model folder "./none"'),
        (("--model", "broken"), '"broken" holds no configuration that transformers knows'),
        (("--model", "empty"), "has no config.json"),
        (("--model", "t5"), '"t5"'),
        (("--r", "0"), "--r: expected at least 1, got 0"),
        (("--r", "4", "--directions", "5"), "--directions: 5 of r = 4"),
        (("--directions", "0"), "--directions: expected at least 1"),
        (("--weight", "-1"), "--weight: expected 0 or more"),
        (("--weight", "nan"), "--weight: expected 0 or more"),
        (("--rounds", "0"), "--rounds: expected at least 1, got 0"),
        (("--rounds", "many"), "--rounds"),
        (("--dtype", "bfloat61"), 'did you mean "bfloat16"?'),
        (("--contenders", "flor"), 'did you mean "floor"?'),
        (("--contenders", ","), "at least one"),
        (("--contenders", "peft,peft"), "at most once"),
        (("--device", "tpu"), "--device: expected cpu, cuda or cuda:N"),
        (("--device", "cuda:99"), '"cuda:99" is not here'),
        (("--model", "model", "--length", "99"), "reads at most 32 tokens, got 99"),
        (("--model", "images", "--length", "9"), "reads images"),
        (("--model", "gpt2", "--length", "1"), "needs 2 tokens"),
        (("--model", "model", "--output", "model/config.json/rows.jsonl"), "is a file, not a folder"),
        (("--model", "model", "--output", "model"), "is a folder"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    (place / "empty").mkdir()
    (place / "broken").mkdir()
    (place / "broken" / "config.json").write_text("{}", encoding="utf-8")
    (place / "t5").mkdir()
    (place / "t5" / "config.json").write_text('{"model_type": "clip_text_model"}', encoding="utf-8")
    before = runs.files_of(place)
    assert runs.call("bench", *words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert (said.count("\n"), said[:7]) == (1, "error: ")
    assert runs.files_of(place) == before
