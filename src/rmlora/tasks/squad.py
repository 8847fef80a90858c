"""Questions with answers that stand in a context: SQuAD 1.1, checked row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rmlora.errors import DataError
from rmlora.tasks.table import Table, check_texts

QUESTIONS, CONTEXTS, ANSWERS = ("question",), ("context",), ("answers",)


@dataclass(frozen=True)
class Question:
    """What is asked for, beside the texts of question and context.

    Attributes:
        id: unique in its part of the data.
        answers: the right answers, as annotated, at least one.
        start: first character of the first answer in the context.
        end: the character after its last.
    """

    id: str
    answers: tuple[str, ...]
    start: int
    end: int


def read_questions(
    table: Table, columns: Sequence[str], label: str
) -> tuple[tuple[list[str], list[str]], list[Question]]:
    """Check the rows of a question answering table.

    The first answer is the one to learn from. A row without id is called by its number.

    Args:
        table: as read; `answers` holds {"text": [...], "answer_start": [...]}, or a list of
            {"text": ..., "answer_start": ...}.
        columns: of questions and of contexts.
        label: column of the answers.

    Returns:
        Questions and contexts, and what is asked for.

    Raises:
        DataError: a field is missing, an id is there twice, or an answer does not stand where it is said to.

    Example:
        >>> answers = [{"text": ["a cat"], "answer_start": [3]}]
        >>> table = Table("a", {"id": ["1"], "question": ["Who?"], "context": ["so a cat"], "answers": answers})
        >>> read_questions(table, ("question", "context"), "answers")[1]
        [Question(id='1', answers=('a cat',), start=3, end=8)]
    """
    questions, contexts = (check_texts(table, column) for column in columns)
    ids = _ids(table)
    asked = []
    for index, (name, context, value) in enumerate(zip(ids, contexts, table.columns[label], strict=True)):
        where = f"{table.row(index)} (id {name})"
        texts, starts = _answers(value, where, label)
        start, end = _locate(texts[0], starts[0], context, where)
        asked.append(Question(name, tuple(texts), start, end))
    return (questions, contexts), asked


def _ids(table: Table) -> list[str]:
    if "id" not in table.columns:
        return [str(index + table.first_row) for index in range(len(table))]
    seen: dict[str, int] = {}
    for index, value in enumerate(table.columns["id"]):
        if value is None:
            raise DataError(f'{table.row(index)}: column "id" holds nothing')
        if str(value) in seen:
            raise DataError(f'{table.row(index)}: id "{value}" is that of row {seen[str(value)]} too')
        seen[str(value)] = index + table.first_row
    return list(seen)


def _answers(value: Any, where: str, label: str) -> tuple[list[str], list[int]]:
    """Read one row's answers in either of the two shapes."""
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
    elif isinstance(value, list) and all(isinstance(one, dict) for one in value):
        texts, starts = [one.get("text") for one in value], [one.get("answer_start") for one in value]
    else:
        texts, starts = None, None
    if not isinstance(texts, list) or not isinstance(starts, list):
        found = "nothing" if value is None else f"{value!r}"[:60]
        raise DataError(f'{where}: "{label}" must hold text and answer_start of each answer, not {found}')
    if not texts:
        raise DataError(f"{where}: no answer; in SQuAD 1.1 every question has one in its context")
    if len(texts) != len(starts):
        raise DataError(f"{where}: {len(texts)} answers, but {len(starts)} values of answer_start")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or isinstance(start, bool) or not isinstance(start, int):
            raise DataError(f"{where}: an answer needs a text and a whole answer_start, not {text!r} and {start!r}")
    return texts, starts


def _locate(text: str, start: int, context: str, where: str) -> tuple[int, int]:
    """Return where an answer stands, without blanks at its ends."""
    if not text.strip():
        raise DataError(f"{where}: the first answer is empty")
    if not 0 <= start <= len(context) - len(text):
        raise DataError(
            f'{where}: answer_start {start} puts "{text[:40]}" outside the context of {len(context)} characters'
        )
    if context[start : start + len(text)] != text:
        raise DataError(
            f'{where}: at answer_start {start} the context has "{context[start : start + len(text)][:40]}", '
            f'not "{text[:40]}"'
        )
    start += len(text) - len(text.lstrip())
    return start, start + len(text.strip())
