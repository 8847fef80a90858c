import re
from pathlib import Path
from typing import Any

import pytest

from rmlora.compare.budget import budget_line
from rmlora.compare.contenders import contenders
from rmlora.compare.reading import make_study, read_study
from rmlora.compare.running import dump_study
from rmlora.errors import ConfigError
from tests.compare import studies

HERE = Path("model"), (Path("train.jsonl"), Path("dev.jsonl")), Path("out")


def test_a_list_of_knobs_is_a_grid_with_a_label_for_each_point() -> None:
    grid = {"name": "rm-lora", "args": {"weight": [1e-4, 1e-2], "directions": [0.5, 2], "preset": "paper"}}
    found = contenders(studies.study(*HERE, methods=["lora", grid]))
    assert [c.label for c in found] == [
        "lora",
        "rm-lora weight=0.0001 directions=0.5",
        "rm-lora weight=0.0001 directions=2",
        "rm-lora weight=0.01 directions=0.5",
        "rm-lora weight=0.01 directions=2",
    ]
    assert found[2].args == {"weight": 1e-4, "directions": 2, "preset": "paper"}


def test_rates_of_an_entry_are_those_of_all_its_points_and_the_budget_is_told() -> None:
    rates = {"lora": [1e-3, 3e-3], "RM": [1e-4, 3e-4]}
    grid = {"name": "rm-lora", "label": "RM", "args": {"weight": [1e-4, 1e-2]}}
    told = studies.study(*HERE, methods=["lora", grid], learning_rates=rates)
    assert [c.rates for c in contenders(told)] == [(1e-3, 3e-3), (1e-4, 3e-4), (1e-4, 3e-4)]
    assert "every method tries 2 learning rates" in budget_line(told)
    assert "1 learning rate" in budget_line(studies.study(*HERE))


def test_a_method_may_stand_under_two_labels_where_its_rates_differ() -> None:
    slower = {"name": "lora", "label": "slower"}
    rates = {"lora": [1e-3, 3e-3], "slower": [7e-4, 2e-3]}
    told = studies.study(*HERE, methods=["lora", slower], learning_rates=rates)
    assert [c.label for c in contenders(told)] == ["lora", "slower"]
    with pytest.raises(ConfigError, match='"lora" and "slower" are the same'):
        studies.study(*HERE, methods=["lora", slower], learning_rates=rates | {"slower": [7e-4, 1e-3]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rates": {"lora": [1e-3, 3e-3], "RM": [1e-3]}}, "unequal budgets: .*lora 2, RM 1"),
        ({"learning_rates": {"lora": [1e-3], "RMM": [1e-3]}}, r'no method is labelled "RMM" \(did you mean "RM"\?\)'),
        ({"learning_rates": {"lora": [1e-3]}}, 'has none for the method "RM"'),
        ({"learning_rates": [1e-3, 1e-3]}, "learning rate of lora 0.001 is given twice"),
        ({"learning_rates": [0.0]}, "must be above 0"),
        ({"methods": ["lora", "lora"]}, "label lora is given twice"),
        ({"methods": ["lora", {"name": "lora", "label": "x"}]}, '"lora" and "x" are the same'),
        (
            {"methods": ["rm-lora", {"name": "rm-lora", "label": "x", "args": {"weight": 1e-4, "directions": 0.5}}]},
            'duplicated cell: methods "rm-lora" and "x" are the same',
        ),
        ({"seeds": [1, 1]}, "duplicated cell: seed 1"),
        ({"ranks": [4, 4]}, "duplicated cell: rank 4"),
        ({"models": ["m", "m"]}, "duplicated cell: model m"),
        ({"methods": ["lorra"]}, r'unknown method "lorra" \(did you mean "lora"\?\)'),
        ({"methods": [{"name": "lora", "args": {"weight": 1}}]}, 'lora has no knob "weight"'),
        ({"methods": [{"name": "rm-lora", "args": {"weight": -1}}]}, "weight"),
        ({"methods": [{"name": "lora", "arg": {}}]}, r'"methods.0.arg" \(did you mean "args"\?\)'),
        ({"seed": [1]}, r'unknown setting "seed" \(did you mean "seeds"\?\)'),
        ({"1[": None}, r'unknown setting "1\['),
        ({"training": {"epochs[": 1}}, r'unknown setting "training.epochs\[" \(did you mean "epochs"'),
        ({"training": {"epoch": 1}}, r'"training.epoch" \(did you mean "epochs"\?\)'),
        ({"training": {"lr": 1e-3}}, '"lr" differs between the cells of a study; give learning_rates'),
        ({"training": {"seed": 1}}, "give seeds="),
        ({"lora": {"r": 8}}, "give ranks="),
        ({"seeds": ["x"]}, '"seeds.0": .*integer'),
        ({"seeds": []}, '"seeds"'),
        ({"seeds": 3}, '"seeds": input should be a valid list, got 3'),
        ({"learning_rates": "fast"}, "\"learning_rates\": input should be a valid list, got 'fast'$"),
        ({"learning_rates": {"lora": "fast", "RM": [1e-3]}}, "\"learning_rates.lora\": .*, got 'fast'$"),
        ({"methods": [["lora"]]}, "\"methods.0\": input should be a group of settings, got \\['lora'\\]$"),
        ({"training": {"metric": "acuracy"}}, r'"training.metric": .*, got .acuracy. \(did you mean "accuracy"\?\)$'),
        ({"learning_rates": [1e-3, 1e-2], "seeds": [1000]}, "reported runs need fresh seeds"),
    ],
)
def test_pyreft_42_a_study_that_is_wrong_or_unfair_is_refused_in_one_line(
    changes: dict[str, Any], message: str
) -> None:
    studies.assert_refused(message, *HERE, **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"train": "a", "holdout": 0.5}}, "the study itself carves from train"),
        ({"training": {"lr": 1.0}}, "training.lr differs between cells"),
        ({"training": {"metrik": "f1"}}, r'unknown setting "training.metrik" \(did you mean "metric"\?\)'),
        ({"data": {"trian": "a"}}, r'"tasks.0.data.trian" \(did you mean "train"\?\)'),
        ({"task": "text-clasification"}, r'"tasks.0.task": .* \(did you mean "text-classification"\?\)$'),
        ({"task": 7}, "\"tasks.0.task\": input should be 'text-classification', .*, got 7$"),
    ],
)
def test_a_task_that_is_wrong_is_refused(change: dict[str, Any], message: str) -> None:
    told = studies.settings(*HERE)
    told["tasks"][0] |= change
    with pytest.raises(ConfigError, match=message):
        make_study(told)


def test_a_group_left_empty_means_its_defaults() -> None:
    empty = {"training": None, "lora": None, "selection": None, "methods": ["lora", {"name": "r-lora", "args": None}]}
    told = studies.study(*HERE, **empty)
    assert told.training == type(told.training)()
    assert [c.args for c in contenders(told)] == [{}, {}]


def test_what_is_missing_is_named() -> None:
    told = studies.settings(*HERE)
    del told["learning_rates"]
    with pytest.raises(ConfigError, match='"learning_rates" is missing'):
        make_study(told)


def test_a_written_study_reads_back_the_same(tmp_path: Path) -> None:
    told = studies.study(*HERE, learning_rates=[1e-3, 1e-2], training={"epochs": 2})
    path = tmp_path / "study.yaml"
    path.write_text(dump_study(told))
    again = read_study(path)
    assert again == told
    assert [c.id for c in studies.cells(again)] == [c.id for c in studies.cells(told)]
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "no.yaml"))):
        read_study(tmp_path / "no.yaml")
