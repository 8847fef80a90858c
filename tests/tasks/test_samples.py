"""Few-shot samples: as many examples of every class, another sample with another seed, and nothing else changes."""

from collections import Counter
from pathlib import Path

import pytest

from rmlora.compare.cells import final_cells, only_rates
from rmlora.config import DataConfig
from rmlora.errors import DataError
from rmlora.tasks.data import load_data
from tests import runs
from tests.compare import studies

HERE = Path("model"), (Path("train.jsonl"), Path("dev.jsonl")), Path("out")


def test_every_class_gives_as_many_in_the_order_of_the_file(tmp_path: Path) -> None:
    train, dev = runs.save_pairs(tmp_path)
    whole = DataConfig(train=str(train), eval=str(dev))
    everything = load_data(whole, "text-classification")
    few = load_data(whole.model_copy(update={"train_per_class": 3}), "text-classification", seed=5)
    assert Counter(few.train.labels) == {0: 3, 1: 3}
    rows = list(zip(*everything.train.inputs, everything.train.labels, strict=True))
    drawn = zip(*few.train.inputs, few.train.labels, strict=True)
    remaining = iter(rows)
    assert all(row in remaining for row in drawn)
    assert few.eval == everything.eval


def test_the_seed_decides_which(tmp_path: Path) -> None:
    train, dev = runs.save_pairs(tmp_path)
    few = DataConfig(train=str(train), eval=str(dev), train_per_class=3)
    drawn = [load_data(few, "text-classification", seed=seed).train for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    fixed = few.model_copy(update={"sample_seed": 1})
    assert load_data(fixed, "text-classification", seed=2).train == drawn[0]


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    train, dev = runs.save_pairs(tmp_path)
    few = DataConfig(train=str(train), eval=str(dev), train_per_class=21)
    with pytest.raises(DataError, match=r'data\.train_per_class=21, but class ".+" has \d+ examples'):
        load_data(few, "text-classification")
    both = few.model_copy(update={"train_examples": 4})
    with pytest.raises(DataError, match=r"either data\.train_per_class or data\.train_examples"):
        load_data(both, "text-classification")
    with pytest.raises(DataError, match="needs a task with classes"):
        load_data(few.model_copy(update={"label": "label"}), "text-regression")


def test_a_study_takes_one_sample_for_all_seeds_unless_told_otherwise() -> None:
    data = {"train": "train.jsonl", "eval": "dev.jsonl", "train_per_class": 3}
    for told, seeds in (({}, {0}), ({"sample_seed": None}, {None})):
        study = studies.study(*HERE, tasks=[{"name": "pairs", "data": data | told}])
        assert {cell.config.data.sample_seed for cell in final_cells(study, only_rates(study))} == seeds


def test_cells_from_before_the_setting_keep_their_ids() -> None:
    study = studies.study(*HERE)
    ids = {cell.id for cell in final_cells(study, only_rates(study))}
    few = studies.study(*HERE, tasks=[{"name": "pairs", "data": {"train": "train.jsonl", "train_per_class": 3}}])
    assert ids.isdisjoint(cell.id for cell in final_cells(few, only_rates(few)))
    assert "05802ad18bd2ee66" in ids
