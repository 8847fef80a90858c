"""What a model answered for each held-out example, in the form in which it is kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from rmlora.config import Task


def answers(outputs: Any, labels: Any, task: Task) -> dict[str, Any]:
    """Name the arrays of a model's answers, one row per example in the order of the data.

    Args:
        outputs: `(n, classes)`, or `(n, 1)` or `(n,)` for a regression; of several outputs the first counts. For
            causal-lm `(n, 2)`, from `completion_losses`.
        labels: `(n,)` class ids or numbers.
        task: kind of task.

    Returns:
        `logits` (n, classes), `labels` (n,), `correct` (n,) bool; of a regression `values` (n,) and `labels` (n,);
        of causal-lm `values` (n,), the negative log-likelihood per token, and `labels` (n,), the number of tokens.

    Example:
        >>> found = answers([[0.1, 0.9], [0.8, 0.2]], [1, 1], "text-classification")
        >>> sorted(found), found["correct"].tolist()
        (['correct', 'labels', 'logits'], [True, False])
    """
    values = np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs, dtype=np.float32)
    if task == "causal-lm":
        return {"values": values[:, 0] / values[:, 1], "labels": values[:, 1].astype(np.int64)}
    if task == "text-regression":
        truth = np.asarray(labels, dtype=np.float32)
        return {"values": values.reshape(len(truth)), "labels": truth}
    truth = np.asarray(labels, dtype=np.int64)
    return {"logits": np.ascontiguousarray(values), "labels": truth, "correct": values.argmax(-1) == truth}
