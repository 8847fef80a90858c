from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rmlora.config import DataConfig
from rmlora.errors import ConfigError, DataError
from rmlora.tasks.data import Examples, load_data
from rmlora.tasks.squad_windows import OUTSIDE, encode_questions, pad_windows, windows_of
from tests import questions, runs


def word_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    runs.save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


TOKENIZERS = {
    "words": word_tokenizer,
    "pieces": lambda folder: questions.piece_tokenizer(),
    "bytes": lambda folder: questions.byte_tokenizer(),
}


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    files = questions.save_squad(tmp_path, words=40)
    return load_data(DataConfig(train=str(files[0]), eval=str(files[1])), "question-answering").train


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_span_of_a_window_is_the_answers_own_text(tmp_path: Path, examples: Examples, kind: str) -> None:
    windows = encode_questions(examples, TOKENIZERS[kind](tmp_path), max_length=36, stride=12)
    assert len(windows) > len(examples)
    found = set()
    for offsets, owner, (first, last) in zip(windows.offsets, windows.owners, windows.spans, strict=True):
        asked, context = examples.labels[owner], examples.inputs[1][owner]
        inside = offsets[offsets[:, 0] != OUTSIDE]
        holds = inside[0, 0] <= asked.start and asked.end <= inside[-1, 1]
        assert (offsets[first, 0] != OUTSIDE) == holds
        if holds:
            found.add(int(owner))
            assert context[offsets[first, 0] : offsets[last, 1]].strip() == asked.answers[0]
        else:
            assert first == last == 0
    assert found == set(range(len(examples)))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_windows_cover_the_context_and_share_the_stride(tmp_path: Path, examples: Examples, kind: str) -> None:
    windows = encode_questions(examples, TOKENIZERS[kind](tmp_path), max_length=36, stride=12)
    assert max(len(ids) for ids in windows.ids) == 36
    for question, context in enumerate(examples.inputs[1]):
        own = [windows.offsets[i] for i in np.flatnonzero(windows.owners == question)]
        parts = [[tuple(o) for o in offsets if o[0] != OUTSIDE] for offsets in own]
        assert (parts[0][0][0], parts[-1][-1][1]) == (0, len(context))
        for before, after in pairwise(parts):
            assert before[-12:] == after[:12]


def test_a_batch_is_padded_on_the_right_and_carries_its_numbers(tmp_path: Path, examples: Examples) -> None:
    tokenizer = word_tokenizer(tmp_path)
    tokenizer.padding_side = "left"
    windows = encode_questions(examples, tokenizer, max_length=40, stride=4)
    chosen = [0, 1, 5]
    batch = pad_windows(tokenizer)([windows[i] for i in chosen])
    assert batch["labels"][:, 2].tolist() == chosen
    for row, i in enumerate(chosen):
        length = len(windows.ids[i])
        assert batch["input_ids"][row, :length].tolist() == windows.ids[i].tolist()
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
        assert (batch["input_ids"][row, length:] == tokenizer.pad_token_id).all()
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_a_sample_holds_all_windows_of_its_questions(tmp_path: Path, examples: Examples) -> None:
    windows = encode_questions(examples, word_tokenizer(tmp_path), max_length=24, stride=4)
    sample = windows_of(windows, 5, seed=0)
    owners = windows.owners[sample.indices]
    assert len(set(owners.tolist())) == 5
    assert len(sample) == np.isin(windows.owners, owners).sum() > 5
    assert windows_of(windows, 99, seed=0) is windows


def test_a_tokenizer_without_offsets_is_refused(examples: Examples) -> None:
    class SlowTokenizer:
        is_fast = False

    with pytest.raises(ConfigError, match=r"needs a fast tokenizer.*SlowTokenizer does not"):
        encode_questions(examples, SlowTokenizer(), 384, 128)


def test_a_question_that_fills_the_window_is_refused(tmp_path: Path, examples: Examples) -> None:
    tokenizer = word_tokenizer(tmp_path)
    length = len(tokenizer(examples.inputs[0][0])["input_ids"]) + 1 + 8 + 1  # one more separator, the overlap, progress
    assert encode_questions(examples, tokenizer, length, 8)
    message = (
        rf"question q\d+ has 4 tokens: with data.stride=8 a window needs {length}, but data.max_length is {length - 1}"
    )
    with pytest.raises(DataError, match=message):
        encode_questions(examples, tokenizer, length - 1, 8)
