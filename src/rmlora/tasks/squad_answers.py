"""From start and end logits of every window to one answer in words for each question, and its score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmlora.tasks.squad_metric import exact_match, token_f1
from rmlora.tasks.squad_windows import OUTSIDE, Windows


@dataclass(frozen=True)
class Candidate:
    """A stretch of the context and the sum of its start and end logits."""

    score: float
    start: int
    end: int


def candidates(starts: Any, ends: Any, offsets: Any, n_best: int = 20, max_answer_length: int = 30) -> list[Candidate]:
    """List the best stretches of one window, best first.

    Each pair of the `n_best` likeliest first and the `n_best` likeliest last tokens of the context counts that is in
    order and not too long; at most `n_best` are kept.

    Args:
        starts: `(tokens,)` logits, or more where the batch was padded.
        ends: the same.
        offsets: `(tokens, 2)` of the window, -1 outside the context.
        n_best: >= 1.
        max_answer_length: in tokens, >= 1.

    Example:
        >>> offsets = np.array([[-1, -1], [0, 3], [4, 7]])
        >>> candidates([9.0, 1.0, 2.0], [9.0, 0.0, 1.0], offsets)[0]
        Candidate(score=3.0, start=4, end=7)
    """
    inside = np.flatnonzero(offsets[:, 0] != OUTSIDE)
    first_logits, last_logits = np.asarray(starts)[inside], np.asarray(ends)[inside]
    first = inside[np.argsort(-first_logits, kind="stable")[:n_best]]
    last = inside[np.argsort(-last_logits, kind="stable")[:n_best]]
    length = last[None, :] - first[:, None] + 1
    rows, columns = np.nonzero((length >= 1) & (length <= max_answer_length))
    scores = np.asarray(starts)[first[rows]] + np.asarray(ends)[last[columns]]
    order = np.argsort(-scores, kind="stable")[:n_best]
    return [
        Candidate(float(scores[i]), int(offsets[first[rows[i]], 0]), int(offsets[last[columns[i]], 1])) for i in order
    ]


def decode(
    starts: Any,
    ends: Any,
    numbers: Sequence[int],
    windows: Windows,
    n_best: int = 20,
    max_answer_length: int = 30,
) -> dict[int, str]:
    """Give each question the best stretch over all its windows.

    Args:
        starts: `(n, tokens)` logits of n windows, padded on the right with anything.
        ends: the same.
        numbers: `(n,)` which of the windows they belong to.
        windows: all windows of the data.
        n_best: as for `candidates`.
        max_answer_length: as for `candidates`.

    Returns:
        Answers by the question's index, ascending; "" where no stretch is possible.
    """
    best: dict[int, Candidate | None] = {}
    for row, number in enumerate(numbers):
        owner = int(windows.owners[number])
        found = candidates(starts[row], ends[row], windows.offsets[number], n_best, max_answer_length)
        rival = best.setdefault(owner, None)
        if found and (rival is None or found[0].score > rival.score):
            best[owner] = found[0]
    contexts = windows.examples.inputs[1]
    return {
        owner: "" if one is None else contexts[owner][one.start : one.end].strip()
        for owner, one in sorted(best.items())
    }


def score(answers: dict[int, str], windows: Windows) -> tuple[Any, Any]:
    """Compute exact match and F1 of each answer.

    Args:
        answers: by the question's index.
        windows: of the questions.

    Returns:
        `(n,)` bool and `(n,)` float in 0 to 1, in the order of `answers`.
    """
    golds = [windows.examples.labels[owner].answers for owner in answers]
    pairs = list(zip(answers.values(), golds, strict=True))
    return np.array([exact_match(*pair) for pair in pairs]), np.array([token_f1(*pair) for pair in pairs])
