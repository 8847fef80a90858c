"""How well a model does: the metrics of each task, from its raw outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from rmlora.config import Task
from rmlora.errors import ConfigError
from rmlora.tasks.completions import likelihood

NAMES: dict[Task, tuple[str, ...]] = {
    "text-classification": ("accuracy", "f1", "matthews"),
    "text-regression": ("pearson", "spearman"),
    "image-classification": ("accuracy", "f1", "matthews"),
    "question-answering": ("f1", "exact_match"),
    "causal-lm": ("log_likelihood",),
}


def choose_metric(wanted: str | None, task: Task, num_labels: int) -> str:
    """Choose the metric that decides which epoch is best; more is better for all of them.

    Raises:
        ConfigError: the task has no such metric.

    Example:
        >>> choose_metric(None, "text-regression", 1)
        'pearson'
    """
    names = metric_names(task, num_labels)
    if wanted is not None and wanted not in names:
        kind = task if task == "causal-lm" else f"{task} with {num_labels} outputs"
        raise ConfigError(f'training.metric: {kind} has {", ".join(names)}, not "{wanted}"')
    return wanted or names[0]


def metric_names(task: Task, num_labels: int) -> tuple[str, ...]:
    """List the metrics of a task; F1 of a classifier is of class 1, so it exists for two classes only.

    Example:
        >>> metric_names("image-classification", 100)
        ('accuracy', 'matthews')
    """
    return tuple(n for n in NAMES[task] if n != "f1" or num_labels == 2 or task == "question-answering")


def measure(logits: Any, labels: Any, task: Task) -> dict[str, float]:
    """Compute every metric of a task.

    Args:
        logits: `(n, classes)`, or `(n, 1)` or `(n,)` for a regression, or the `(n, 2)` of `completion_losses`.
        labels: `(n,)` class ids or numbers; not looked at for causal-lm.
        task: kind of task.

    Returns:
        Metrics by name, each at most 1; for causal-lm those of `likelihood`. A correlation of constant outputs, which
        is 0 / 0, reads 0.

    Example:
        >>> measure([[1.0, 0.0], [0.0, 1.0]], [0, 1], "text-classification")
        {'accuracy': 1.0, 'f1': 1.0, 'matthews': 1.0}
    """
    outputs = np.asarray(logits[0] if isinstance(logits, tuple) else logits, dtype=np.float64)
    if task == "causal-lm":
        return likelihood(outputs)
    truth = np.asarray(labels)
    if task == "text-regression":
        guess = outputs.reshape(len(truth))
        return {"pearson": pearson(guess, truth), "spearman": pearson(_ranks(guess), _ranks(truth))}
    guess = outputs.argmax(-1)
    found = {"accuracy": float((guess == truth).mean())}
    if outputs.shape[-1] == 2:
        found["f1"] = _f1(guess, truth)
    found["matthews"] = _matthews(guess, truth, outputs.shape[-1])
    return found


def pearson(a: Any, b: Any) -> float:
    """Compute Pearson's correlation; 0 if either side is constant.

    Example:
        >>> round(pearson([1, 2, 3], [2, 4, 7]), 4)
        0.9934
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else 0.0


def _ranks(values: Any) -> Any:
    from scipy.stats import rankdata

    return rankdata(values)


def _f1(guess: Any, truth: Any) -> float:
    hit = float(((guess == 1) & (truth == 1)).sum())
    claimed_and_true = float((guess == 1).sum() + (truth == 1).sum())
    return 2 * hit / claimed_and_true if claimed_and_true else 0.0


def _matthews(guess: Any, truth: Any, classes: int) -> float:
    # the correlation of the two one-hot codings, which for two classes is Matthews' coefficient
    eye = np.eye(classes)
    x, y = eye[guess], eye[truth.astype(int)]
    x, y = x - x.mean(0), y - y.mean(0)
    norm = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / norm if norm > 0 else 0.0
