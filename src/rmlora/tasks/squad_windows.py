"""Questions and contexts as token ids: a long context in windows that overlap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rmlora.errors import ConfigError, DataError
from rmlora.tasks.data import Examples

BATCH = 1000
OUTSIDE = -1


class Windows(torch.utils.data.Dataset[dict[str, Any]]):
    """Windows of all questions, in the order of the questions.

    Attributes:
        examples: questions, contexts and what is asked for.
        ids: token ids of each window, unpadded.
        types: token types of each window; empty where the model reads none.
        offsets: `(tokens, 2)` of each window: where a token begins and ends in the context; -1 outside it.
        owners: `(windows,)` index of each window's question.
        spans: `(windows, 2)` first and last token of the answer; both the `no-answer` token where the window does
            not hold all of it.
    """

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        self.ids: list[Any] = []
        self.types: list[Any] = []
        self.offsets: list[Any] = []
        self.owners: Any = np.zeros(0, dtype=np.int64)
        self.spans: Any = np.zeros((0, 2), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one window; its labels are first token, last token, and the window's own number."""
        window = {"input_ids": self.ids[index], "labels": np.array([*self.spans[index], index])}
        return window | ({"token_type_ids": self.types[index]} if self.types else {})


def encode_questions(examples: Examples, tokenizer: Any, max_length: int, stride: int) -> Windows:
    """Tokenise questions with their contexts.

    Args:
        examples: questions and contexts.
        tokenizer: of the model, one that knows where its tokens stand in the text.
        max_length: tokens of a window: question, context and special tokens.
        stride: tokens two neighbouring windows share.

    Raises:
        ConfigError: the tokenizer gives no offsets.
        DataError: a question leaves no room for its context.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"question-answering needs a fast tokenizer, which knows where tokens stand in the text; "
            f"{type(tokenizer).__name__} does not (is tokenizer.json missing?)"
        )
    questions, contexts = [text.lstrip() for text in examples.inputs[0]], examples.inputs[1]
    check_room(questions, examples, tokenizer, max_length, stride)
    windows, owners, spans = Windows(examples), [], []
    for begin in range(0, len(examples), BATCH):
        part = slice(begin, begin + BATCH)
        encoded = tokenizer(
            questions[part],
            contexts[part],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for i, owner in enumerate(encoded["overflow_to_sample_mapping"]):
            ids = np.asarray(encoded["input_ids"][i], dtype=np.int32)
            in_context = np.array([side == 1 for side in encoded.sequence_ids(i)])
            offsets = np.where(in_context[:, None], np.asarray(encoded["offset_mapping"][i], dtype=np.int32), OUTSIDE)
            asked = examples.labels[begin + owner]
            windows.ids.append(ids)
            windows.offsets.append(offsets)
            if "token_type_ids" in encoded:
                windows.types.append(np.asarray(encoded["token_type_ids"][i], dtype=np.int8))
            owners.append(begin + owner)
            spans.append(find_span(offsets, asked.start, asked.end) or 2 * (_no_answer(ids, tokenizer),))
    windows.owners, windows.spans = np.array(owners), np.array(spans).reshape(-1, 2)
    return windows


def find_span(offsets: Any, start: int, end: int) -> tuple[int, int] | None:
    """Find the tokens that cover characters `start` to `end` (excluded) of the context.

    Tokens may or may not contain the blank before them, so what counts is where they end and begin.

    Args:
        offsets: `(tokens, 2)`, -1 for tokens outside the context.
        start: first character.
        end: the character after the last.

    Returns:
        First and last token, or None if the window does not hold all of the characters.

    Example:
        >>> offsets = np.array([[-1, -1], [0, 2], [2, 6], [6, 9], [-1, -1]])
        >>> find_span(offsets, 3, 6), find_span(offsets, 3, 12)
        ((2, 2), None)
    """
    inside = np.flatnonzero(offsets[:, 0] != OUTSIDE)
    if not len(inside) or offsets[inside[0], 0] > start or offsets[inside[-1], 1] < end:
        return None
    first = inside[offsets[inside, 1] > start][0]
    last = inside[offsets[inside, 0] < end][-1]
    return (int(first), int(last)) if first <= last else None


def check_room(questions: Sequence[str], examples: Examples, tokenizer: Any, max_length: int, stride: int) -> None:
    """Refuse windows that cannot move on because a question and the overlap fill them.

    Raises:
        DataError: names the longest question and what would be enough.
    """
    if not questions:
        return
    lengths = [len(ids) for ids in tokenizer(list(questions), add_special_tokens=False)["input_ids"]]
    longest = int(np.argmax(lengths))
    needed = lengths[longest] + tokenizer.num_special_tokens_to_add(pair=True) + stride + 1
    if needed > max_length:
        raise DataError(
            f"question {examples.labels[longest].id} has {lengths[longest]} tokens: with data.stride={stride} a window "
            f"needs {needed}, but data.max_length is {max_length}; raise it or lower data.stride"
        )


def pad_windows(tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """Return a collate function that pads a batch of windows on the right to its longest."""

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        length = max(len(window["input_ids"]) for window in batch)
        fills = {"input_ids": tokenizer.pad_token_id, "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0)}
        padded = {
            name: torch.tensor(np.stack([_pad(window[name], length, fill) for window in batch]))
            for name, fill in fills.items()
            if name in batch[0]
        }
        padded["attention_mask"] = torch.tensor(
            np.stack([_pad(np.ones(len(window["input_ids"]), dtype=np.int64), length, 0) for window in batch])
        )
        padded["labels"] = torch.tensor(np.stack([window["labels"] for window in batch]))
        return padded

    return collate


def windows_of(windows: Windows, count: int, seed: int) -> Any:
    """Return all windows of a seeded sample of `count` questions; of all if there are fewer."""
    questions = len(windows.examples)
    if count >= questions:
        return windows
    order = torch.randperm(questions, generator=torch.Generator().manual_seed(seed))[:count]
    return torch.utils.data.Subset(windows, np.flatnonzero(np.isin(windows.owners, order.numpy())).tolist())


def _pad(values: Any, length: int, fill: int) -> Any:
    return np.pad(values.astype(np.int64), (0, length - len(values)), constant_values=fill)


def _no_answer(ids: Any, tokenizer: Any) -> int:
    """Return the token that stands for "not in this window": the classification token, or the first."""
    if tokenizer.cls_token_id is None:
        return 0
    found = np.flatnonzero(ids == tokenizer.cls_token_id)
    return int(found[0]) if len(found) else 0
