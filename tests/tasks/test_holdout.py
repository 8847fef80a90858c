from collections import Counter
from pathlib import Path

import pytest

from rmlora.config import DataConfig
from rmlora.errors import DataError
from rmlora.tasks.data import load_data
from rmlora.tasks.holdout import carve
from tests import runs


def test_both_parts_are_all_examples_and_each_class_gives_its_share() -> None:
    labels = [0] * 50 + [1] * 30 + [2] * 17 + [3]
    kept, held = carve(labels, 0.2, seed=3)
    assert sorted(kept + held) == list(range(98))
    assert len(held) == round(0.2 * 98)
    counts = Counter(labels[i] for i in held)
    assert all(abs(counts[c] - 0.2 * labels.count(c)) <= 1 for c in range(4))
    assert counts[3] == 0  # a class is never taken whole


def test_the_seed_alone_decides_what_is_held_out() -> None:
    labels = [i % 3 for i in range(60)]
    assert carve(labels, 0.25, seed=1) == carve(labels, 0.25, seed=1)
    assert carve(labels, 0.25, seed=1) != carve(labels, 0.25, seed=2)


def test_a_holdout_never_opens_the_reported_file(tmp_path: Path) -> None:
    train, dev = runs.save_pairs(tmp_path)
    dev.unlink()
    data = load_data(DataConfig(train=str(train), holdout=0.25), "text-classification", seed=5)
    assert (len(data.train), len(data.eval), data.files) == (30, 10, (train,))
    other = load_data(DataConfig(train=str(train), holdout=0.25), "text-classification", seed=6)
    assert other.eval == data.eval  # the training seed has no part in it


def test_a_holdout_is_carved_from_the_sample_that_is_trained_on(tmp_path: Path) -> None:
    train, _ = runs.save_pairs(tmp_path)
    sampled = DataConfig(train=str(train), train_examples=20, sample_seed=4)
    carved = load_data(sampled.model_copy(update={"holdout": 0.25}), "text-classification")
    assert (len(carved.train), len(carved.eval)) == (15, 5)


def test_of_an_npz_only_the_training_arrays_are_carved(tmp_path: Path) -> None:
    path = runs.save_digits(tmp_path / "d.npz")
    data = load_data(DataConfig(train=str(path), holdout=0.25), "image-classification")
    assert (len(data.train), len(data.eval)) == (18, 6)


def test_a_holdout_beside_a_reported_file_or_of_nothing_is_refused(tmp_path: Path) -> None:
    train, dev = runs.save_pairs(tmp_path)
    with pytest.raises(DataError, match=r"either data\.holdout"):
        load_data(DataConfig(train=str(train), eval=str(dev), holdout=0.5), "text-classification")
    with pytest.raises(DataError, match=r"data.holdout=0.01 of 40 training examples leaves none"):
        load_data(DataConfig(train=str(train), holdout=0.01), "text-classification")
