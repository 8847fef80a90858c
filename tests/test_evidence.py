"""The page of evidence is what its rows give: no number in it is anybody's memory."""

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
IN_README = {  # a row of the README's table: the row of the page that it repeats
    "LoRA": "LoRA",
    "RM-LoRA as it comes (weight 1e-4)": "RM-LoRA, defaults",
    "RM-LoRA, weight 1e-3": "RM-LoRA",
    "R-LoRA, weight 1e-3": "R-LoRA",
    "GM-LoRA, half of the directions": "GM-LoRA",
    "LoRA Dropout": "LoRA Dropout",
    "full layer": "Full FT",
}


def test_the_page_of_evidence_is_made_of_the_committed_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks" / "evidence"), *sys.path])
    report = importlib.import_module("report")
    monkeypatch.setattr(report, "FIGURES", tmp_path)
    told = "\n".join(report.lines()).rstrip() + "\n"
    assert told == (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8"), "run `make evidence-report`"
    drawn = {path.name for path in tmp_path.glob("*.svg")}
    assert drawn == {path.name for path in (ROOT / "docs" / "evidence").glob("*.svg")}
    assert all(f"](evidence/{name})" in told for name in drawn)


def test_the_readme_repeats_the_page_of_evidence_to_the_digit() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    there = scores(page.split("## The classification layer alone")[1].split("**Ablations.**")[0], "±")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    here = scores(readme.split("| | R = 8 |")[1].split("\n\n")[0], "+-")
    assert here.keys() == IN_README.keys()
    for name, own in here.items():
        assert own == there[IN_README[name]][: len(own)], name


def scores(table: str, sign: str) -> dict[str, list[tuple[str, str]]]:
    """Mean and deviation in every column, by the row's name."""
    rows = (line.strip("|").split("|") for line in table.splitlines() if re.match(r"\| [A-Za-z]", line))
    pattern = r"(\d+\.\d+) " + re.escape(sign) + r" (\d+\.\d+)"
    found = {name.strip(): re.findall(pattern, " ".join(cells)) for name, *cells in rows}
    return {name: own for name, own in found.items() if own}
