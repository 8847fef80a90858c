"""Gates, merging and the best expert in one study."""

from pathlib import Path

import pytest

from rmlora.compare.reading import make_study
from rmlora.compare.running import compare
from rmlora.errors import ConfigError
from tests.compare import studies

MODES = ("gates", "linear", "best")


def test_one_study_compares_all_three_ways(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], experts: list[str]
) -> None:
    told = studies.settings(bert, files, tmp_path / "study", mode="mixture", mixture={"experts": experts}, seeds=[0])
    told["methods"] = [{"name": "lora", "label": mode, "mixture": {"combine": mode}} for mode in MODES]
    rows = compare(make_study(told, "study"), workers=0)
    found = {row["label"]: row for row in rows}
    assert found.keys() == set(MODES)
    heads = {row["parameters"]["head"] for row in rows}
    assert len(heads) == 1
    assert found["gates"]["parameters"]["trainable"] > heads.pop()
    assert found["best"]["last"]["expert"] in ("same", "half")
    assert "gate_same" in found["gates"]["last"]
    again = compare(make_study(told, "study"), workers=0)
    assert again == rows


def test_a_study_refuses_what_a_run_would(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    told = studies.settings(bert, files, tmp_path / "study", mode="mixture", methods=["lora"])
    with pytest.raises(ConfigError, match=r"mixture.experts needs the folders of two"):
        make_study(told, "study")
    told["methods"] = [{"name": "lora", "mixture": {"combined": "best"}}]
    with pytest.raises(ConfigError, match=r'unknown setting "mixture.combined"'):
        make_study(told, "study")
