import numpy as np
import pytest

from rmlora.errors import DataError
from rmlora.tasks.labels import Classes, find_classes, to_ids, to_numbers
from rmlora.tasks.table import Table


def table(*labels: object, names: tuple[str, ...] | None = None) -> Table:
    return Table("train.jsonl", {"label": list(labels)}, names)


def test_names_are_sorted_and_numbered() -> None:
    classes = find_classes(table("yes", "no", "maybe", "no"), "label")
    assert classes == Classes(("maybe", "no", "yes"), by_name=True)
    assert to_ids(table("no", "yes"), "label", classes) == [1, 2]


@pytest.mark.parametrize("labels", [(0, 2, 1), (0.0, 2.0, 1.0), tuple(np.array([0, 2, 1]))])
def test_numbers_are_class_ids_however_they_are_stored(labels: tuple) -> None:
    classes = find_classes(table(*labels), "label")
    assert classes.names == ("0", "1", "2")
    assert to_ids(table(*labels), "label", classes) == [0, 2, 1]


def test_booleans_are_two_classes() -> None:
    assert to_ids(table(True, False), "label", find_classes(table(True, False), "label")) == [1, 0]


def test_given_names_number_the_classes() -> None:
    assert find_classes(table(0, 1), "label", names=["entailment", "not"]).names == ("entailment", "not")
    assert find_classes(table(0, 1, names=("a", "b", "c")), "label").names == ("a", "b", "c")
    assert len(find_classes(table(0, 5), "label", num_labels=6)) == 6


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((0, 1, -1), r"train.jsonl, row 3: label -1 is out of range"),
        ((0, 1, 7), r"labels run up to 7 but 2, 3, 4, 5, 6 never occur; set data.num_labels=8"),
        ((0.0, 3.8), r"row 2: label 3.8 is not a class; for numbers set task=text-regression"),
        ((0, None), r'row 2: column "label" holds no label'),
        ((0, "yes"), r"row 2: label 'yes' in column \"label\" is not a class number"),
        (("yes", "yes"), r'only one class \("yes"\)'),
        ((0, 0), r"only one class"),
    ],
)
def test_bad_training_labels_are_refused_by_row(labels: tuple, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_classes(table(*labels), "label")


def test_labels_unseen_in_training_are_refused_by_row() -> None:
    with pytest.raises(DataError, match=r'row 2: label "yess" does not occur in training \(did you mean "yes"\?\)'):
        to_ids(table("no", "yess"), "label", Classes(("no", "yes"), by_name=True))
    with pytest.raises(DataError, match=r"row 2: label 2 is out of range 0..1"):
        to_ids(table(1, 2), "label", Classes(("0", "1"), by_name=False))


def test_class_names_must_match_their_number() -> None:
    with pytest.raises(DataError, match="num_labels is 3, but there are 2"):
        find_classes(table(0, 1), "label", num_labels=3, names=["a", "b"])
    with pytest.raises(DataError, match="only one class"):
        find_classes(table(0, 1), "label", names=["a"])


@pytest.mark.parametrize("value", ["high", None, float("nan"), float("inf"), [1.0]])
def test_a_regression_needs_numbers(value: object) -> None:
    with pytest.raises(DataError, match=r"row 2: .*(is not a number|holds no label)"):
        to_numbers(table(1.5, value), "label")
