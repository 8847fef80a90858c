"""Examples as columns, with the place they came from, and choosing a column by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rmlora.errors import DataError, nearest

PAIRS = {"sentence1": "sentence2", "question1": "question2", "premise": "hypothesis", "question": "sentence"}
TEXTS = ("sentence1", "question1", "premise", "question", "sentence", "text", "review", "content")
IMAGES = ("image", "img", "images", "x")
PROMPTS = ("prompt", "instruction", "input", "source", "text")
COMPLETIONS = ("completion", "response", "output", "target", "answer")
LABELS = ("label", "labels", "y", "target", "score", "fine_label", "intent")


@dataclass(frozen=True)
class Table:
    """Columns of equal length, as read.

    Attributes:
        where: the file, folder or data set, for messages.
        columns: values by column name; images may be decoded when indexed.
        class_names: names of the classes 0, 1, ..., where the source states them.
        first_row: number of the first row as its reader would count it (a CSV's first line is a header).
    """

    where: str
    columns: dict[str, Sequence[Any]]
    class_names: tuple[str, ...] | None = None
    first_row: int = 1

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def row(self, index: int) -> str:
        """Name a row for a message: the place and the line a reader would look at."""
        return f"{self.where}, row {index + self.first_row}"


def take(table: Table, wanted: str | None, usual: Sequence[str], role: str) -> str:
    """Choose the column of a role: the one asked for, or the first of the usual names that is there.

    Args:
        table: where to look.
        wanted: the name the user gave, or None.
        usual: names to try when none was given, best first.
        role: setting that chooses this column, for the message, such as `data.label`.

    Raises:
        DataError: there is no such column; the nearest, or all, are named.

    Example:
        >>> take(Table("a.csv", {"text": ["hi"], "label": [0]}), None, LABELS, "data.label")
        'label'
    """
    there = list(table.columns)
    if wanted is not None:
        if wanted in there:
            return wanted
        hint = nearest(wanted, there)
        raise DataError(f'{table.where}: no column "{wanted}" ({role}){hint}; it has {", ".join(there)}')
    for name in usual:
        if name in there:
            return name
    raise DataError(f"{table.where}: cannot tell which column is {role}; set {role}=<one of {', '.join(there)}>")


def take_text(table: Table, text: str | None, pair: str | None) -> tuple[str, str | None]:
    """Choose the column of the text and, if there is one, that of its partner.

    Args:
        table: where to look.
        text: `data.text`, or None to find it.
        pair: `data.text_pair`, or None to take the usual partner where it exists and `text` was not given.

    Raises:
        DataError: a named column is missing, or none looks like text.

    Example:
        >>> take_text(Table("a", {"sentence1": ["a"], "sentence2": ["b"], "label": [0]}), None, None)
        ('sentence1', 'sentence2')
    """
    first = take(table, text, TEXTS, "data.text")
    if pair is not None:
        return first, take(table, pair, (), "data.text_pair")
    partner = PAIRS.get(first)
    return first, partner if text is None and partner in table.columns else None


def check_texts(table: Table, column: str) -> list[str]:
    """Return a column's values once every one is known to be text.

    Raises:
        DataError: a value is missing, is not text or has half a character; the row is named.
    """
    values = list(table.columns[column])
    for index, value in enumerate(values):
        if not isinstance(value, str):
            found = "nothing" if value is None else f"{value!r}, which is not text"
            raise DataError(f'{table.row(index)}: column "{column}" holds {found}')
        refuse_half_characters(value, f'{table.row(index)}: column "{column}"')
    return values


def refuse_half_characters(text: str, where: str) -> None:
    r"""Refuse what JSON can write and no file can hold: one half of a surrogate pair, such as "\ud800".

    Raises:
        DataError: there is one.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = ascii(text[error.start])[1:-1]
            raise DataError(f"{where} holds half a character ({half}); write the whole one, or leave it out") from error


def check_completions(table: Table, column: str) -> list[str]:
    """Return a column's completions once every one is known to be text that says something.

    Raises:
        DataError: one is missing, is not text, or is empty; the row is named.

    Example:
        >>> check_completions(Table("a.jsonl", {"completion": ["yes"]}), "completion")
        ['yes']
    """
    values = check_texts(table, column)
    for index, value in enumerate(values):
        if not value.strip():
            raise DataError(f'{table.row(index)}: column "{column}" is empty: there is nothing to learn')
    return values
