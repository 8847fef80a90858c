from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmlora.config import DataConfig
from rmlora.tasks.data import load_data
from rmlora.tasks.squad_answers import candidates, decode, score
from rmlora.tasks.squad_windows import OUTSIDE, Windows, encode_questions
from tests import questions


@pytest.fixture
def windows(tmp_path: Path) -> Windows:
    files = questions.save_squad(tmp_path, words=40)
    data = load_data(DataConfig(train=str(files[0]), eval=str(files[1])), "question-answering")
    return encode_questions(data.eval, questions.piece_tokenizer(), max_length=40, stride=8)


def logits(windows: Windows, seed: int = 0) -> Any:
    """Random, padded by what the Trainer pads with, and highest where no answer can be."""
    draw = np.random.default_rng(seed)
    values = np.full((2, len(windows), 48), -100.0, dtype=np.float32)
    for i, offsets in enumerate(windows.offsets):
        values[:, i, : len(offsets)] = draw.normal(size=(2, len(offsets))) + 9 * (offsets[:, 0] == OUTSIDE)
    return values


def best_by_hand(windows: Windows, starts: Any, ends: Any, owner: int, limit: int) -> str:
    stretches = []
    for i in np.flatnonzero(windows.owners == owner):
        tokens = range(len(windows.offsets[i]))
        for first, last in product(tokens, tokens):
            if min(windows.offsets[i][first][0], windows.offsets[i][last][0]) >= 0 and first <= last < first + limit:
                place = slice(windows.offsets[i][first][0], windows.offsets[i][last][1])
                stretches.append((starts[i, first] + ends[i, last], place))
    return windows.examples.inputs[1][owner][max(stretches, key=lambda s: s[0])[1]].strip()


@pytest.mark.parametrize("limit", [1, 4, 30])
def test_the_answer_is_the_best_stretch_over_all_windows(windows: Windows, limit: int) -> None:
    starts, ends = logits(windows)
    answers = decode(starts, ends, range(len(windows)), windows, n_best=99, max_answer_length=limit)
    assert list(answers) == list(range(len(windows.examples)))
    assert answers == {owner: best_by_hand(windows, starts, ends, owner, limit) for owner in answers}


def test_the_order_of_the_windows_does_not_matter(windows: Windows) -> None:
    starts, ends = logits(windows)
    order = np.random.default_rng(1).permutation(len(windows))
    assert decode(starts[order], ends[order], order, windows) == decode(starts, ends, range(len(windows)), windows)


def test_only_the_likeliest_ends_are_tried_together() -> None:
    offsets = np.array([[i, i + 1] for i in range(4)])
    starts, ends = [0.0, 0.0, 0.0, 9.0], [8.0, 0.0, 0.0, 1.0]
    assert candidates(starts, ends, offsets, n_best=1) == []
    assert [(c.start, c.end) for c in candidates(starts, ends, offsets, n_best=2)] == [(3, 4), (0, 1)]
    assert len(candidates(starts, ends, offsets, n_best=3)) == 3


def test_no_stretch_is_an_empty_answer(windows: Windows) -> None:
    size = len(windows.offsets[0])
    starts, ends = np.arange(size)[None], -np.arange(size)[None]
    assert decode(starts, ends, [0], windows, n_best=1) == {0: ""}


def test_gold_logits_give_gold_answers(windows: Windows) -> None:
    starts, ends = np.zeros((2, len(windows), 48))
    for i, (first, last) in enumerate(windows.spans):
        starts[i, first] = ends[i, last] = 5.0
    answers = decode(starts, ends, range(len(windows)), windows)
    exact, f1 = score(answers, windows)
    assert exact.all()
    assert (f1 == 1).all()
    assert answers[0] == windows.examples.labels[0].answers[0]
