import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rmlora.compare import work
from rmlora.compare.agenda import Agenda
from rmlora.compare.cells import Cell
from rmlora.compare.reading import make_study
from rmlora.compare.rows import read_rows, without_times
from rmlora.compare.running import compare
from rmlora.compare.store import Store
from rmlora.compare.study import Study
from rmlora.errors import DataError, DivergedError, RmloraError, StateError
from tests import runs
from tests.compare import studies

Told = Callable[..., Study]


@pytest.fixture
def told(bert: Path, files: tuple[Path, Path], tmp_path: Path) -> Told:
    """A study of these files, with what a test changes."""
    return lambda **changes: studies.study(bert, files, tmp_path / "out", **changes)


def run(study: Study) -> tuple[list[dict[str, Any]], str]:
    """Run a study in this process; return its rows without times, and what it said."""
    console = Console(file=io.StringIO(), width=200, color_system=None)
    found = without_times(compare(study, workers=0, console=console))
    return found, console.file.getvalue()


def break_training(monkeypatch: pytest.MonkeyPatch, error: BaseException, wanted: Callable[[Cell], bool]) -> None:
    own = work.train_cell

    def broken(cell: Cell, *rest: Any) -> Any:
        if wanted(cell):
            raise error
        return own(cell, *rest)

    monkeypatch.setattr(work, "train_cell", broken)


def test_a_study_leaves_a_row_for_each_cell_sorted_by_id(finished: Path) -> None:
    table = studies.rows(finished)
    assert [row["cell"] for row in table] == sorted(p.name for p in (finished / "cells").iterdir())
    assert {(row["label"], row["seed"]) for row in table} == {(m, s) for m in ("lora", "RM") for s in (0, 1)}
    for row in table:
        result = json.loads((finished / row["folder"] / "result.json").read_text())
        assert row["last"] == result["last"]
        assert list(row)[-1] == "seconds"
        assert row["parameters"]["inference"] <= row["parameters"]["trainable"]
        assert not (finished / row["folder"] / "checkpoints").exists()
        assert not (finished / row["folder"] / "claim.json").exists()
        assert "accuracy" in (finished / row["folder"] / "log.txt").read_text()
    assert (finished / "environment.json").is_file()


def test_a_finished_study_runs_nothing_again_and_leaves_the_same_bytes(finished: Path, told: Told) -> None:
    output = told().folder
    shutil.copytree(finished, output)
    before, rows = studies.times(output), (output / "rows.jsonl").read_bytes()
    (output / "rows.jsonl").write_bytes(rows[: len(rows) // 2])  # cut off: it is written anew from the cells
    _, said = run(told())
    assert studies.times(output) == before
    assert (output / "rows.jsonl").read_bytes() == rows
    assert "4 of 4 cells are finished; 0 to run" in said


def test_a_method_and_a_seed_more_run_only_the_new_cells(finished: Path, told: Told) -> None:
    output = told().folder
    shutil.copytree(finished, output)
    before = studies.times(output)
    more = told(methods=["lora", {"name": "rm-lora", "label": "RM", "args": {"weight": 1e-3}}, "r-lora"])
    assert len(run(more)[0]) == 6
    assert len(run(told(seeds=[0, 1, 2]))[0]) == 6  # r-lora is no longer asked for; its cells stay where they are
    after = studies.times(output)
    assert {name: after[name] for name in before} == before
    assert len(after) == 4 + 2 + 2


def test_rows_do_not_depend_on_the_order_of_work(finished: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Agenda.having
    monkeypatch.setattr(Agenda, "having", lambda *a: list(reversed(own(*a))))
    assert run(told())[0] == without_times(studies.rows(finished))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda cell: (cell / "metrics.jsonl").unlink(), "metrics.jsonl is missing"),
        (lambda cell: (cell / "predictions.safetensors").unlink(), "predictions.safetensors is missing"),
        (lambda cell: cut(cell / "metrics.jsonl"), "metrics.jsonl has .* bytes instead of"),
        (lambda cell: cut(cell / "result.json"), "result.json is cut off"),
        (lambda cell: (cell / "config.yaml").unlink(), "config.yaml is missing"),
        (lambda cell: (cell / "result.json").unlink(), "3 of 4 cells are finished"),
        (lambda cell: [p.unlink() for p in cell.iterdir() if p.name != "README.md"], "3 of 4 cells are finished"),
        (shutil.rmtree, "3 of 4 cells are finished"),
    ],
    ids=["metrics", "predictions", "cut", "cut result", "config", "result", "nearly all", "all"],
)
def test_a_damaged_cell_is_named_and_run_again_and_nothing_else(
    finished: Path, told: Told, damage: Callable[[Path], object], line: str
) -> None:
    output = told().folder
    shutil.copytree(finished, output)
    before = studies.times(output)
    victim = sorted((output / "cells").iterdir())[1]
    damage(victim)
    rows, said = run(told())
    assert rows == without_times(studies.rows(finished))
    assert re.search(line, said)
    changed = {name for name, time in studies.times(output).items() if before[name] != time}
    assert changed == {victim.name}


def cut(path: Path) -> None:
    """Leave the first half of a file, as a crash may."""
    text = path.read_text()
    path.write_text(text[: len(text) // 2])


def test_a_failed_cell_keeps_its_log_stops_nobody_and_is_tried_again(
    finished: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = studies.cells(told())[0]
    with monkeypatch.context() as patch:
        break_training(patch, RuntimeError("the GPU fell\noff the bus"), lambda cell: cell.id == victim.id)
        with pytest.raises(RmloraError, match=r"1 of 4 cells failed.*the GPU fell off the bus.*log.txt") as failed:
            run(told())
    assert "\n" not in str(failed.value)
    store = Store(told().folder)
    assert len(studies.rows(store.path)) == 3
    assert "off the bus" in store.log(victim).read_text()
    rows, said = run(told())
    assert "failed before" in said
    assert rows == without_times(studies.rows(finished))
    assert "off the bus" in store.log(victim).read_text()
    assert not store.failure(victim).exists()


def test_a_rate_that_diverges_is_not_chosen_and_is_not_tried_again(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    study = told(learning_rates=[1e-3, 1e-2], methods=["lora"], seeds=[0])
    break_training(monkeypatch, DivergedError("eval_loss is nan"), lambda c: c.kind == "select" and c.lr == 1e-3)
    rows, said = run(study)
    assert "lr=0.01 is chosen" in said
    assert sorted((row["kind"], row["lr"]) for row in rows) == [("final", 1e-2), ("select", 1e-2)]
    chosen = json.loads((study.folder / "chosen.json").read_text())
    assert [(one["lr"], one["scores"][0]) for one in chosen] == [(1e-2, {"lr": 1e-3, "score": None})]
    monkeypatch.undo()
    assert run(study)[0] == rows


@pytest.mark.slow
def test_a_group_whose_selection_failed_waits_because_its_budget_was_not_spent(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = told(learning_rates=[1e-3, 1e-2], seeds=[0])
    with monkeypatch.context() as patch:
        label = "lora"
        break_training(patch, OSError("gone"), lambda c: c.lr == 1e-3 and c.group.label == label)
        with pytest.raises(RmloraError, match="1 of 5 cells failed"):
            run(study)
    kinds = [(row["label"], row["kind"]) for row in studies.rows(study.folder)]
    assert sorted(kinds) == [("RM", "final"), ("RM", "select"), ("RM", "select"), ("lora", "select")]
    assert len(run(study)[0]) == 6


def test_selection_runs_without_the_reported_file(bert: Path, tmp_path: Path) -> None:
    files = runs.save_pairs(tmp_path)
    files[1].unlink()
    study = studies.study(bert, files, tmp_path / "out", learning_rates=[1e-3, 1e-2], methods=["lora"], seeds=[0])
    with pytest.raises(RmloraError, match=r"1 of 3 cells failed.*no data file.*dev.jsonl"):
        run(study)
    rows = studies.rows(study.folder)
    assert [row["kind"] for row in rows] == ["select", "select"]
    assert {(row["examples"]["train"], row["examples"]["eval"]) for row in rows} == {(36, 4)}


def test_changed_data_is_refused_before_anything_runs(bert: Path, tmp_path: Path) -> None:
    files = runs.save_pairs(tmp_path)
    study = studies.study(bert, files, tmp_path / "out", methods=["lora"], seeds=[0])
    run(study)
    before = (study.folder / "rows.jsonl").read_bytes()
    runs.write_jsonl(files[1], runs.pairs(16, seed=9))
    with pytest.raises(StateError, match=r"dev.jsonl\" has changed since the study"):
        run(study)
    assert (study.folder / "rows.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("keep", "there"),
    [("adapters", {"adapter_model.safetensors"}), ("none", set()), ("all", {"adapter_model", "model"})],
)
def test_only_the_weights_that_are_asked_for_stay(told: Told, keep: str, there: set[str]) -> None:
    study = told(methods=["lora", "full"], seeds=[0], keep_weights=keep)
    run(study)
    found = {p.name for p in study.folder.rglob("*model.safetensors")}
    assert found == {f"{name.removesuffix('.safetensors')}.safetensors" for name in there}
    assert run(study)[1].count("2 of 2 cells are finished") == 1


def test_cut_off_rows_are_refused_with_the_line_and_the_remedy(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "rows.jsonl", tmp_path)
    cut(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"rows.jsonl, line \d: cut off .* start `rmlora compare` again"):
        read_rows(tmp_path / "rows.jsonl")
    assert read_rows(finished / "rows.jsonl") == studies.rows(finished)


def test_a_cut_off_data_file_is_named_with_its_line_and_what_was_finished_is_kept(bert: Path, tmp_path: Path) -> None:
    files = runs.save_pairs(tmp_path)
    whole = studies.settings(bert, files, tmp_path / "out", methods=["lora"], seeds=[0])
    run(make_study(whole))
    cut_off = tmp_path / "cut.jsonl"
    cut_off.write_text(files[0].read_text()[:-20])
    second = {"name": "cut", "data": {"train": str(cut_off), "eval": str(files[1]), "max_length": 16}}
    with pytest.raises(
        RmloraError, match=r"1 of 2 cells failed, all others.*cut.jsonl, line 40: not valid JSON"
    ) as cut:
        run(make_study(whole | {"tasks": [*whole["tasks"], second]}))
    assert "\n" not in str(cut.value)
    assert [row["task"] for row in studies.rows(tmp_path / "out")] == ["pairs"]
    cut_off.unlink()
    with pytest.raises(RmloraError, match=r"^1 of 1 cells failed; first: .*no data file"):
        run(make_study(whole | {"tasks": [second], "output": str(tmp_path / "other")}))


def test_head_mode_is_given_to_the_heads(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    import rmlora.heads

    seen = []

    def train_head(config: Any, **told: Any) -> dict[str, Any]:
        folder = Path(config.output)
        seen.append((config.scope, folder.name))
        assert told["resume"]
        epoch = {"epoch": 1, "step": 1, "eval_accuracy": 0.5}
        result = {"metric": "accuracy", "best": epoch, "last": epoch, "seconds": 0.1}
        (folder / "metrics.jsonl").write_text(json.dumps(epoch) + "\n")
        (folder / "result.json").write_text(json.dumps(result))
        return result

    monkeypatch.setattr(rmlora.heads, "train_head", train_head)
    rows, _ = run(told(mode="head"))
    assert sorted(seen) == [("head", row["cell"]) for row in rows]


def test_a_dry_run_tells_cells_budget_and_time_and_writes_nothing(
    bert: Path,
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    told = studies.settings(bert, files, output, learning_rates=[1e-3, 1e-2])
    path = studies.written(tmp_path / "study.yaml", told)
    assert runs.call("compare", path, "--dry-run", "--workers", "2") == 0
    said = capsys.readouterr().out
    assert "every method tries 2 learning rates" in said
    assert said.count(", selection") == 4
    assert "and 4 reported runs" in said
    assert re.search(r"Estimated time: about \d+ .*2 at a time", said)
    assert not output.exists()


def test_the_command_runs_a_study_and_tells_a_mistake_in_one_line(
    bert: Path,
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = studies.settings(bert, files, tmp_path / "out", methods=["lora"], seeds=[0])
    path = studies.written(tmp_path / "study.yaml", told)
    assert runs.call("compare", path, "--workers", "0", "--output", tmp_path / "there") == 0
    assert len(studies.rows(tmp_path / "there")) == 1
    assert "1/1  lora r=4 on pairs" in capsys.readouterr().out
    studies.written(path, told | {"seeds": [0, 0]})
    assert runs.call("compare", path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "duplicated cell: seed 0 is given twice" in error
