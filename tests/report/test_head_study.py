"""A study of classification layers, reported: each printed command, run as it stands, gives its row again."""

import json
import re
import shlex
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

from rmlora.compare.reading import read_study
from rmlora.compare.running import compare
from rmlora.report.write import write_report
from tests import runs
from tests.compare import studies

METHODS = ["lora", "full", {"name": "rm-lora", "label": "RM", "args": {"weight": 1e-2, "directions": 2}}]


def commands(report: str) -> dict[str, list[str]]:
    """The words of each `rmlora train` of a report, by cell."""
    lines = [line for line in report.splitlines() if line.startswith("rmlora train ")]
    return {re.search(r"cells/([0-9a-f]{16})/", line)[1]: shlex.split(line)[1:] for line in lines}


def test_microsoft_lora_149_the_command_of_every_row_gives_the_row_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    runs.save_bert(tmp_path / "bert")
    runs.save_pairs(tmp_path)
    layer = {"standardise": True, "frozen": "random"}
    changes = {"mode": "head", "methods": METHODS, "head": layer, "keep_weights": "all"}
    told = studies.settings(Path("bert"), (Path("train.jsonl"), Path("dev.jsonl")), Path("my study"), **changes)
    told["training"]["epochs"] = 2
    compare(read_study(studies.written(tmp_path / "study.yaml", told)), workers=0, console=Console(quiet=True))
    rows = {row["cell"]: row for row in studies.rows(tmp_path / "my study")}
    found = commands(write_report(Path("my study"))[1].read_text())
    assert found.keys() == rows.keys()
    assert len(rows) == 6
    for cell, words in found.items():
        assert runs.call(*words) == 0
        again = tmp_path / "again" / cell
        assert json.loads((again / "result.json").read_text())["last"] == rows[cell]["last"]
        one, other = (load_file(folder / "head.safetensors") for folder in (again, tmp_path / "my study/cells" / cell))
        assert runs.equal(one, other)
        assert {p.name for p in again.iterdir()} == {
            p.name for p in (tmp_path / "my study/cells" / cell).iterdir() if p.name not in ("files.json", "log.txt")
        }
