import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rmlora.compare.agenda import choose
from rmlora.compare.budget import show_budget
from rmlora.compare.cells import final_cells, groups_of, only_rates, selection_cells
from rmlora.errors import ConfigError
from tests.compare import studies

HERE = Path("model"), (Path("train.jsonl"), Path("dev.jsonl")), Path("out")


def test_transformers_40533_every_combination_is_one_cell_and_full_fine_tuning_has_no_rank() -> None:
    told = studies.study(*HERE, methods=["lora", "full"], ranks=[2, 4], models=["m", "n"])
    found = final_cells(told, only_rates(told))
    assert len(found) == len({cell.id for cell in found}) == 2 * (2 + 1) * 2
    assert {cell.group.r for cell in found if cell.group.label == "full"} == {None}
    assert {cell.config.lora.r for cell in found if cell.group.label == "lora"} == {2, 4}
    assert all(len(cell.id) == 16 and int(cell.id, 16) >= 0 for cell in found)


def test_with_one_rate_nothing_is_selected() -> None:
    told = studies.study(*HERE)
    assert selection_cells(told) == []
    assert {cell.lr for cell in final_cells(told, only_rates(told))} == {1e-2}


def test_selection_names_nothing_but_train_and_reported_runs_have_fresh_seeds() -> None:
    task = {"name": "pairs", "data": {"train": "train.jsonl", "eval": "dev.jsonl", "eval_examples": 7}}
    hub = {"name": "hub", "data": {"dataset": "glue/rte", "eval_split": "validation"}}
    told = studies.study(*HERE, tasks=[task, hub], learning_rates=[1e-3, 1e-2])
    select = selection_cells(told)
    assert len(select) == 2 * 2 * 2
    for cell in select:
        text = json.dumps(cell.config.model_dump(mode="json"))
        assert "dev.jsonl" not in text
        assert "validation" not in text
        assert cell.config.data.holdout == 0.1
        assert cell.seed == cell.config.training.seed == told.selection.seed
    final = final_cells(told, dict.fromkeys(groups_of(told), 1e-3))
    assert {cell.seed for cell in final} == {0, 1}
    assert all(cell.config.data.holdout is None for cell in final)
    assert {cell.config.data.eval for cell in final} == {"dev.jsonl", None}
    assert {cell.config.data.sample_seed for cell in (*select, *final)} == {0}


def test_a_seed_a_method_or_a_rank_more_only_adds_cells() -> None:
    def ids(**changes: object) -> set[str]:
        told = studies.study(*HERE, **changes)
        return {cell.id for cell in final_cells(told, only_rates(told))}

    before = ids()
    assert len(ids(seeds=[0, 1, 2]) - before) == 2
    assert before < ids(seeds=[0, 1, 2])
    assert before < ids(ranks=[4, 8])
    more = [*studies.settings(*HERE)["methods"], "full"]
    assert len(ids(methods=more) - before) == 2
    assert ids(name="other", keep_weights="none") == before


def test_a_task_has_its_own_training_settings() -> None:
    task = {"name": "pairs", "data": {"train": "a.jsonl", "eval": "b.jsonl"}, "training": {"metric": "f1", "epochs": 4}}
    told = studies.study(*HERE, tasks=[task])
    training = final_cells(told, only_rates(told))[0].config.training
    assert (training.metric, training.epochs, training.batch_size) == ("f1", 4, 8)
    task["training"] = {"epochs": 0}
    with pytest.raises(ConfigError, match=r"training.epochs"):
        final_cells(studies.study(*HERE, tasks=[task]), only_rates(told))


def test_the_rate_with_the_highest_score_is_chosen_and_of_equal_ones_the_smaller() -> None:
    told = studies.study(*HERE, learning_rates=[3e-2, 1e-3, 1e-2], methods=["lora"])
    own = selection_cells(told)

    def chosen(*scores: float | None) -> float | None:
        results = {
            cell.id: {"metric": "f1", "best": {"eval_f1": 1.0}, "last": {"eval_f1": score}}
            for cell, score in zip(own, scores, strict=True)
            if score is not None
        }
        return choose(own[0].group, own, results, "last").rate

    assert chosen(0.2, 0.1, 0.3) == 1e-2
    assert chosen(0.3, 0.3, 0.3) == 1e-3
    assert chosen(None, -0.5, -0.2) == 1e-2
    assert chosen(None, None, None) is None


def test_a_method_may_have_adapter_settings_of_its_own(bert: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    dora = {"name": "lora", "label": "DoRA", "lora": {"use_dora": True, "scale": 4}}
    pissa = {"name": "rm-lora", "label": "PiSSA", "lora": {"init_lora_weights": "pissa", "use_rslora": True}}
    told = studies.study(bert, files, tmp_path, methods=["lora", dora, pissa], lora={"lora_dropout": 0.1}, seeds=[0])
    found = {cell.group.label: cell.config.lora for cell in studies.cells(told)}
    assert {label: lora.use_dora for label, lora in found.items()} == {"lora": False, "DoRA": True, "PiSSA": False}
    assert {lora.lora_dropout for lora in found.values()} == {0.1}
    assert {lora.r for lora in found.values()} == {4}
    assert (found["DoRA"].lora_alpha, found["PiSSA"].init_lora_weights) == (16, "pissa")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "rm-lora", "lora": {"r": 2}}, "rm-lora: lora.r differs between cells; list every rank under ranks"),
        ({"name": "full", "lora": {"use_dora": True}}, "full has no adapter, so its own lora settings"),
        ({"name": "sora", "lora": {"use_dora": True}}, "sora acts inside the forward pass that lora.use_dora changes"),
        ({"name": "adalora", "lora": {"init_lora_weights": "pissa"}}, "method=adalora starts from triplets of its own"),
        ({"name": "lora", "label": "again"}, 'methods "lora" and "again" are the same'),
    ],
)
def test_adapter_settings_that_a_method_cannot_have_are_refused(
    method: dict[str, Any], message: str, bert: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    studies.assert_refused(message, bert, files, tmp_path, methods=["lora", method])


def test_the_budget_shows_them(bert: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    own = {"name": "lora", "label": "own", "lora": {"use_dora": True, "target_modules": ["query"]}}
    told = studies.study(bert, files, tmp_path, methods=["lora", own], lora={"lora_dropout": 0.1})
    console = Console(file=io.StringIO(), width=200, color_system=None)
    show_budget(told, studies.agenda(told), console)
    assert "lora.target_modules=['query'], lora.use_dora=True" in " ".join(console.file.getvalue().split())
    assert "lora_dropout" not in console.file.getvalue()
