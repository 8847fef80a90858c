import pytest

from rmlora.continual.matrix import accuracies_of, anytime_accuracy, average_accuracy, forgetting, within_tasks
from rmlora.continual.partition import check_examples, split_classes
from rmlora.errors import ConfigError, DataError
from rmlora.sections import ContinualSettings
from rmlora.tasks.data import Examples, TaskData
from rmlora.tasks.labels import Classes

NAMES = ("no", "yes", "maybe", "never", "always")


def split(seed=0, **settings):
    return split_classes(NAMES, ContinualSettings(**settings), seed)


def test_every_class_is_in_one_task_and_tasks_are_as_even_as_can_be():
    tasks = split_classes([str(i) for i in range(77)], ContinualSettings(), seed=4)
    assert sorted(c for task in tasks for c in task) == list(range(77))
    assert [len(task) for task in tasks] == [8] * 7 + [7] * 3


def test_the_order_is_drawn_from_the_seed():
    assert split(tasks=2) == split(tasks=2)
    assert len({split(seed=seed, tasks=2) for seed in range(6)}) > 1
    assert split(seed=1, tasks=2, split_seed=5) == split(seed=2, tasks=2, split_seed=5)


def test_given_classes_are_taken_as_they_are():
    assert split(classes=[["maybe", "no"], ["always"], ["yes", "never"]]) == ((2, 0), (4,), (1, 3))
    assert split_classes(("0", "1"), ContinualSettings(classes=[[1], [0]]), 0) == ((1,), (0,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": 6}, "tasks=6, but the data has 5 classes; give at most 5"),
        ({"classes": [["no", "yes", "maybe"], ["yes", "never", "always"]]}, '"yes" is named 2 times'),
        ({"classes": [["no", "nevr"], ["yes"]]}, r'no class "nevr" in the data \(did you mean "never"\?\)'),
        ({"classes": [["no", "yes"], ["always"]]}, r'"maybe" is in no task \(2 classes are not\)'),
        ({"classes": [list(NAMES)]}, "has one task"),
    ],
)
def test_what_is_no_split_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message) as refused:
        split(**settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("train", "held_out", "message"),
    [([0, 1], [0, 1, 2], r"task 2 \(c\) has no example in data.train"), ([0, 2], [1], "task 2 .* data.eval")],
)
def test_a_task_without_examples_is_refused(train, held_out, message):
    parts = [Examples((["x"] * len(labels),), labels) for labels in (train, held_out)]
    data = TaskData("text-classification", *parts, Classes(("a", "b", "c"), True), ("text", "label"), ())
    with pytest.raises(DataError, match=message):
        check_examples(((0, 1), (2,)), data)


def test_accuracies_are_among_the_classes_seen():
    logits = [[0.0, 1.0, 5.0, 9.0], [3.0, 1.0, 0.0, 9.0], [0.0, 0.0, 1.0, 9.0], [9.0, 0.0, 1.0, 0.0]]
    labels = [1, 0, 2, 2]
    assert accuracies_of(logits, labels, ((0, 1), (2,))) == [0.5, 0.5]
    assert accuracies_of(logits[:2], labels[:2], ((0, 1),)) == [1.0]


def test_within_its_task_a_class_competes_with_no_other() -> None:
    logits = [[0.0, 1.0, 5.0, 2.0], [3.0, 1.0, 0.0, 9.0], [0.0, 0.0, 1.0, 9.0], [9.0, 0.0, 1.0, 0.0]]
    labels = [1, 0, 2, 2]
    assert accuracies_of(logits, labels, ((0, 1), (2, 3))) == [0.0, 0.0]
    assert within_tasks(logits, labels, ((0, 1), (2, 3))) == [1.0, 0.5]


def test_forgetting_and_averages_against_numbers_worked_out_by_hand():
    matrix = [[0.9], [0.6, 0.8], [0.7, 0.9, 1.0]]
    assert average_accuracy(matrix) == pytest.approx((0.7 + 0.9 + 1.0) / 3)
    assert anytime_accuracy(matrix) == pytest.approx((0.9 + 0.7 + 2.6 / 3) / 3)
    assert forgetting(matrix) == pytest.approx(((0.9 - 0.7) + (0.8 - 0.9)) / 2)
    assert forgetting(matrix[:1]) is None
