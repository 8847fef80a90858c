"""'Same inference budget' is a check: what every method trains and keeps is recorded, compared and said."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rmlora.compare.inference_budget import budget_lines, inference_budgets
from rmlora.compare.running import compare
from rmlora.report.write import write_report
from tests.compare import studies


def row(label: str, kept: int, seed: int = 0, **changes: Any) -> dict[str, Any]:
    counts = {"adapter": 80, "head": 9, "base": 0, "trainable": 89, "inference": kept + 9}
    where = {"task": "rte", "model": "m", "r": 4, "seed": seed, "parameters": counts}
    return {"label": label, "method": label.lower()} | where | changes


def test_methods_that_keep_the_same_are_said_to() -> None:
    (budget,) = inference_budgets([row("LoRA", 80), row("LoRA", 80, 1), row("RM", 80)])
    assert budget.is_same
    assert budget.differing == ()
    assert str(budget) == "LoRA, RM all keep 80 parameters at inference, without the head."


def test_methods_that_do_not_are_named_with_their_numbers() -> None:
    whole = {"adapter": 0, "head": 9, "base": 1000, "trainable": 1009, "inference": 1009}
    pruned = [row("SoRA", 60), row("SoRA", 72, 1), row("SoRA", 80, 2)]
    rows = [row("LoRA", 80), *pruned, row("RM", 80), row("Full", 0, r=None, parameters=whole)]
    (budget,) = inference_budgets(rows)
    assert not budget.is_same
    assert budget.differing == ("SoRA", "Full")
    assert str(budget) == (
        "LoRA, RM keep 80 parameters at inference, without the head. Others do not: SoRA 60 to 80 (of 80 trained); "
        "Full 1,000 (the weights themselves are trained)."
    )


def test_a_head_of_another_size_does_not_hide_a_difference() -> None:
    other = {"adapter": 80, "head": 29, "base": 0, "trainable": 109, "inference": 89}
    assert inference_budgets([row("LoRA", 80), row("SoRA", 60, parameters=other)])[0].differing == ("SoRA",)


def test_settings_are_told_apart_and_what_was_not_recorded_is_said() -> None:
    rows = [row("LoRA", 80), row("SoRA", 60), row("LoRA", 160, r=8), row("SoRA", 160, r=8), row("Old", 0, r=8)]
    rows[-1]["parameters"] = None
    assert budget_lines(rows) == [
        "rte, m, r = 4: LoRA keeps 80 parameters at inference, without the head. "
        "Others do not: SoRA 60 (of 80 trained).",
        "rte, m, r = 8: LoRA, SoRA all keep 160 parameters at inference, without the head. Not recorded: Old.",
    ]
    assert budget_lines([row("LoRA", 80), row("LoRA", 80, task="mrpc")]) == []
    assert budget_lines([row(name, 0, parameters=None) for name in ("LoRA", "RM")]) == []


def test_where_nobody_keeps_the_same_nobody_is_the_measure() -> None:
    rows = [row("SoRA", 60), row("SoRA", 61, 1), row("Ada", 70), row("Ada", 71, 1)]
    assert str(inference_budgets(rows)[0]) == (
        "no method keeps the same number of parameters as another, without the head: SoRA 60 to 61 (of 80 trained); "
        "Ada 70 to 71 (of 80 trained)."
    )


@pytest.fixture(scope="module")
def differing(bert: Path, files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished study whose methods keep different numbers, and what it said."""
    sora = {"name": "sora", "label": "SoRA", "args": {"threshold": 0.2}}
    methods = ["lora", "rm-lora", sora, "adalora", "full"]
    output, console = tmp_path_factory.mktemp("budgets") / "out", Console(file=io.StringIO(), width=400)
    told = studies.study(bert, files, output, methods=methods, seeds=[0])
    compare(told, workers=0, console=console)
    return output, console.file.getvalue()  # type: ignore[attr-defined]


def test_every_row_records_trained_and_kept_with_and_without_the_head(differing: tuple[Path, str]) -> None:
    counts = {one["label"]: one["parameters"] for one in studies.rows(differing[0])}
    lora, head = counts["lora"], 2 * 32 + 2
    assert {one["head"] for one in counts.values()} == {head}
    assert lora["trainable"] - head == lora["inference"] - head == lora["inference_adapter"] == lora["adapter"]
    assert counts["rm-lora"] == lora
    gates = 4 * 2 * 6  # one for each of four directions of the six projections of two layers
    assert counts["SoRA"]["trainable"] == lora["trainable"] + gates
    assert counts["SoRA"]["inference"] < lora["inference"]
    assert counts["adalora"]["trainable"] > lora["trainable"] > counts["adalora"]["inference_adapter"]
    assert counts["full"]["base"] + head == counts["full"]["trainable"] == counts["full"]["inference"]


def test_a_study_says_which_methods_keep_another_number(differing: tuple[Path, str]) -> None:
    output, said = differing
    (line,) = [line for line in said.splitlines() if "at inference" in line]
    assert "r = 4: lora, rm-lora keep " in line
    assert "Others do not: SoRA " in line
    assert "; adalora " in line
    assert "; full " in line
    assert "Done: 5 rows" in said, "and does not fail of it"
    write_report(output)
    text = (output / "report" / "report.md").read_text().replace("\\", "")
    assert line.partition(": ")[2] in text
    assert "Another number than most is kept by SoRA, adalora, full" in text


def test_a_study_of_one_budget_says_so(bert: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    compare(studies.study(bert, files, tmp_path / "out", methods=["lora", "r-lora"], seeds=[0]), workers=0)
    write_report(tmp_path / "out")
    text = (tmp_path / "out" / "report" / "report.md").read_text().replace("\\", "")
    assert "The inference budget is the same for all methods" in text
    assert "Inference budget: lora, r-lora all keep " in text
