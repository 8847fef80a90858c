"""The accuracy matrix of a continual run, and what is read off it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmlora.continual.partition import Tasks

Matrix = list[list[float]]
"""Row t: accuracies on tasks 1, 2, ... that have been learned, after learning task t."""


def accuracies_of(logits: Any, labels: Any, tasks: Tasks) -> list[float]:
    """Measure the accuracy on the held-out examples of each task, among the classes of all of them.

    Args:
        logits: `(n, classes)`; classes of no task here never win.
        labels: `(n,)` class ids.
        tasks: those learned so far; each has an example.

    Returns:
        One accuracy for each.

    Example:
        >>> accuracies_of([[1.0, 2.0, 9.0], [3.0, 0.0, 9.0], [3.0, 0.0, 9.0]], [1, 0, 1], ((0,), (1,)))
        [1.0, 0.5]
    """
    outputs, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    seen = np.zeros(outputs.shape[1], dtype=bool)
    seen[[c for task in tasks for c in task]] = True
    right: NDArray[np.bool_] = np.where(seen, outputs, -np.inf).argmax(-1) == truth
    return [float(right[np.isin(truth, task)].mean()) for task in tasks]


def within_tasks(logits: Any, labels: Any, tasks: Tasks) -> list[float]:
    """Measure the accuracy on each task among its own classes, as if the model were told which task it is.

    Args:
        logits: `(n, classes)`.
        labels: `(n,)` class ids.
        tasks: those learned so far; each has an example.

    Returns:
        One accuracy for each.

    Example:
        >>> within_tasks([[1.0, 2.0, 9.0], [3.0, 0.0, 9.0], [3.0, 0.0, 9.0]], [1, 0, 1], ((0, 1), (2,))[:1])
        [0.6666666666666666]
    """
    return [
        accuracies_of(np.asarray(logits)[inside], np.asarray(labels)[inside], (task,))[0]
        for task in tasks
        for inside in [np.isin(np.asarray(labels), task)]
    ]


def average_accuracy(matrix: Sequence[Sequence[float]]) -> float:
    """Return the mean over tasks of the last row (the paper's Acc).

    Example:
        >>> average_accuracy([[1.0], [0.5, 1.0]])
        0.75
    """
    return sum(matrix[-1]) / len(matrix[-1])


def anytime_accuracy(matrix: Sequence[Sequence[float]]) -> float:
    """Return the mean over rows of each row's mean (the paper's AAA).

    Example:
        >>> anytime_accuracy([[1.0], [0.5, 1.0]])
        0.875
    """
    return sum(sum(row) / len(row) for row in matrix) / len(matrix)


def forgetting(matrix: Sequence[Sequence[float]]) -> float | None:
    """Return the mean over the tasks before the last of the best earlier accuracy minus the last one.

    Below 0 where tasks got better after they were learned. None with one row, where nothing could be forgotten.

    Example:
        >>> forgetting([[0.75], [1.0, 0.5], [0.5, 0.75, 1.0]])
        0.125
    """
    if len(matrix) < 2:
        return None
    lost = [max(row[i] for row in matrix[i:-1]) - matrix[-1][i] for i in range(len(matrix) - 1)]
    return sum(lost) / len(lost)
