"""One run's answers on the held-out examples, read back for comparisons example by example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rmlora.compare.scores import Score, mean_score, score_of
from rmlora.compare.statistics import Array
from rmlora.errors import DataError

# Tensors of a predictions file that are not one number per example and metric.
_NOT_SCORES = ("logits", "values", "labels", "correct")


@dataclass(frozen=True)
class Predictions:
    """What a run said at its last epoch.

    Attributes:
        labels: `(n,)` class ids or numbers; zeros where the task has none.
        outputs: `(n, classes)` logits, or `(n,)` values; None for tasks that answer in text.
        correct: `(n,)`; None where an answer is not simply right or wrong.
        scores: `(n,)` by metric, for metrics that are means over examples, such as exact_match.
    """

    labels: Array
    outputs: Array | None = None
    correct: NDArray[np.bool_] | None = None
    scores: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def matches(self, other: Predictions) -> bool:
        """Whether both are about the same examples, as far as their labels tell."""
        return len(self) == len(other) and bool(np.array_equal(self.labels, other.labels))

    def score(self, metric: str) -> Score | None:
        """The metric as something that can be resampled; None where it is no function of sums over examples."""
        if metric in self.scores:
            return mean_score(self.scores[metric])
        return None if self.outputs is None else score_of(metric, self.outputs, self.labels)


def read_predictions(path: Path) -> Predictions:
    """Read predictions.safetensors.

    Args:
        path: the file: `logits` or `values` and `labels`, and for classifiers `correct`; or one tensor per metric
            with its value for every example.

    Raises:
        DataError: it is damaged, or its tensors are not of one length.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f'"{path}" cannot be read as safetensors: {" ".join(str(error).split())}') from error
    sizes = {len(tensor) if tensor.ndim else 0 for tensor in found.values()}
    if len(sizes) != 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(found.items()))
        raise DataError(f'"{path}" holds {shapes or "nothing"}; each must have one entry per example')
    outputs, correct = found.get("logits", found.get("values")), found.get("correct")
    labels = found.get("labels", np.zeros(sizes.pop()))
    if correct is None and outputs is not None and outputs.ndim == 2:
        correct = outputs.argmax(-1) == labels
    return Predictions(
        labels=labels.astype(np.float64),
        outputs=None if outputs is None else outputs.astype(np.float64),
        correct=None if correct is None else correct.astype(bool),
        scores={n: t.astype(np.float64) for n, t in found.items() if n not in _NOT_SCORES and t.ndim == 1},
    )
