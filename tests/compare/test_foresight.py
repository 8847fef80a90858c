"""What can be known of a study's cells is known when it is read: nothing has been written by then."""

from pathlib import Path
from typing import Any

import pytest

from rmlora.compare.foresight import foresee_cells
from rmlora.compare.reading import make_study
from rmlora.errors import ConfigError
from tests import runs
from tests.compare import studies

HERE = Path("model"), (Path("train.jsonl"), Path("dev.jsonl")), Path("out")


def method(name: str, **args: Any) -> dict[str, Any]:
    return {"methods": ["lora", {"name": name, "label": "X", "args": args}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (method("rm-lora", directions=8), r"X at r=4: directions=8 exceeds r=4 of every module; give at most 4, or a"),
        (method("gm-lora", directions=8) | {"ranks": [8, 4]}, "X at r=4: directions=8 exceeds r=4"),
        (method("rm-lora", directions=[2, 8]), "X directions=8 at r=4: directions=8 exceeds r=4"),
        (method("rm-lora", weight=-1), "X: weight of the orthogonality penalty is -1; it must be finite and >= 0"),
        (method("rm-lora", weight="strong"), "method rm-lora: weight='strong' is a str; it takes Scalar"),
        (method("rm-lora", weight=True), "weight=True is a bool"),
        (method("rm-lora", weight={"a": 1}), "weight={'a': 1} is a dict"),
        (method("rm-lora", weight=[]), "X: the list of weight is empty"),
        (method("rm-lora", wieght=1e-3), r'no knob "wieght" \(did you mean "weight"\?\)'),
        (method("gm-lora", directions=1.5), "directions=1.5: give a count"),
        (method("gm-lora", resample_steps=2.5), r"resample_steps=2.5 is a float; it takes int"),
        (method("sora", threshold=-1e-3), "threshold=-0.001; it must be >= 0"),
        (method("adalora", total_steps=10, initial_steps=5, final_steps=5), "leaves no step to prune in"),
        (method("full", directions=2), 'method full has no knob "directions"'),
        (method("sora") | {"lora": {"use_dora": True}}, "X acts inside the forward pass that lora.use_dora changes"),
        (method("adalora") | {"mode": "head"}, "scope=head trains plain LoRA factors; method adalora has none"),
        ({"mode": "head", "training": {"precision": "bf16"}}, "scope=head has no training.precision=bf16"),
        ({"lora": {"scale": 1, "lora_alpha": 3}}, "lora_alpha is 3: give one of them"),
        ({"ranks": [0]}, '"ranks.0": .*greater than or equal to 1, got 0'),
        ({"seeds": [-1]}, '"seeds.0": .*greater than or equal to 0, got -1'),
        ({"learning_rates": [float("nan")]}, "learning_rates.0.*finite"),
        ({"training": {"metric": "spearman"}}, "training.metric is spearman, but text-classification has accuracy, f1"),
    ],
)
def test_what_a_cell_would_fail_of_is_refused_at_reading(changes: dict[str, Any], message: str) -> None:
    studies.assert_refused(message, *HERE, **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"metric": 3}}, 'task "pairs": "training.metric": .*got 3'),
        ({"training": {"metric": ["f1"]}}, "\"training.metric\": .*got \\['f1'\\]"),
        ({"training": {"metric": "pearson"}}, 'task "pairs": training.metric is pearson, but text-classification has'),
        ({"task": "question-answering", "training": {"metric": "accuracy"}}, "but question-answering has f1"),
        ({"training": {"epochs": "many"}}, 'task "pairs": "training.epochs": .*integer'),
        ({"data": {"train": "a", "eval": "b", "glue": "stsb"}, "task": "text-classification"}, "glue/stsb is text-reg"),
    ],
)
def test_a_task_that_no_cell_could_run_is_refused_at_reading(change: dict[str, Any], message: str) -> None:
    told = studies.settings(*HERE)
    told["tasks"][0] |= change
    with pytest.raises(ConfigError, match=message) as refused:
        make_study(told)
    assert "\n" not in str(refused.value)


def test_what_is_left_open_is_foreseen_as_it_will_be_run() -> None:
    told = studies.settings(*HERE, learning_rates=[1e-3, 1e-2])
    told["tasks"][0] = {"name": "sts", "data": {"train": "a", "eval": "b", "glue": "stsb"}}
    cells = foresee_cells(make_study(told))
    assert [cell.kind for cell in cells] == ["select"] * 4 + ["final"] * 4
    assert {(cell.config.task, cell.config.training.metric) for cell in cells} == {("text-regression", "pearson")}


def test_the_command_refuses_before_it_makes_a_folder(
    bert: Path, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = studies.settings(bert, files, tmp_path / "out", **method("rm-lora", directions=8))
    path = studies.written(tmp_path / "study.yaml", told)
    for words in ((), ("--dry-run",)):
        assert runs.call("compare", path, *words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"{path}: X at r=4: directions=8 exceeds r=4 of every module" in error
    assert not (tmp_path / "out").exists()
