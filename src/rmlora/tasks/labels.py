"""Labels: which classes there are, and turning what the data says into ids or numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rmlora.errors import DataError, nearest
from rmlora.tasks.table import Table, refuse_half_characters

_MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class Classes:
    """The classes of a task.

    Attributes:
        names: of class 0, 1, ...
        by_name: whether the data holds names (True) or the numbers 0, 1, ... (False).
    """

    names: tuple[str, ...]
    by_name: bool

    def __len__(self) -> int:
        return len(self.names)


def find_classes(
    table: Table, column: str, num_labels: int | None = None, names: Sequence[str] | None = None
) -> Classes:
    """Find the classes of the training data.

    Numbers must be 0 .. K-1 without a gap, unless the number of classes is given; names are sorted.

    Args:
        table: the training examples.
        column: of the labels.
        num_labels: number of classes where the user gave it.
        names: of the classes in order, where the user or the source gave them.

    Raises:
        DataError: labels are missing, mixed, fractional, negative, have a gap, or are all the same.

    Example:
        >>> find_classes(Table("a", {"label": ["no", "yes", "no"]}), "label").names
        ('no', 'yes')
    """
    values = _plain(table, column)
    names = names if names is not None else table.class_names
    if all(isinstance(value, str) for value in values):
        found = tuple(names) if names is not None else tuple(sorted(set(values)))
        _check_count(table, found, num_labels)
        return Classes(found, by_name=True)
    numbers = {_as_int(table, column, index, value) for index, value in enumerate(values)}
    count = num_labels or (len(names) if names is not None else max(numbers) + 1)
    if num_labels is None and names is None:
        gaps = list(islice((i for i in range(count) if i not in numbers), 6))
        if gaps:
            raise DataError(
                f"{table.where}: labels run up to {count - 1} but {_some(gaps)} never occur; "
                f"set data.num_labels={count} if that is meant"
            )
    if count > _MOST_CLASSES:
        raise DataError(f"{table.where}: {count} classes are more than {_MOST_CLASSES}; check data.num_labels")
    found = tuple(names) if names is not None else tuple(str(i) for i in range(count))
    _check_count(table, found, num_labels)
    return Classes(found, by_name=False)


def to_ids(table: Table, column: str, classes: Classes) -> list[int]:
    """Turn labels into class ids.

    Raises:
        DataError: a label is not one of the classes; the row, and the nearest class, are named.

    Example:
        >>> to_ids(Table("a", {"label": ["yes", "no"]}), "label", Classes(("no", "yes"), by_name=True))
        [1, 0]
    """
    ids = {name: i for i, name in enumerate(classes.names)}
    found = []
    for index, value in enumerate(_plain(table, column)):
        if classes.by_name:
            if value not in ids:
                hint = nearest(str(value), list(ids))
                raise DataError(f'{table.row(index)}: label "{value}" does not occur in training{hint}')
            found.append(ids[value])
            continue
        number = _as_int(table, column, index, value)
        if not 0 <= number < len(classes):
            raise DataError(f"{table.row(index)}: label {number} is out of range 0..{len(classes) - 1}")
        found.append(number)
    return found


def to_numbers(table: Table, column: str) -> list[float]:
    """Turn labels into the numbers of a regression.

    Raises:
        DataError: a label is missing or not a finite number; the row is named.

    Example:
        >>> to_numbers(Table("a", {"label": [1, "2.5"]}), "label")
        [1.0, 2.5]
    """
    numbers = []
    for index, value in enumerate(_plain(table, column)):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"{table.row(index)}: label {value!r} is not a number (task: text-regression)")
        numbers.append(number)
    return numbers


def _plain(table: Table, column: str) -> list[Any]:
    values = [v.item() if hasattr(v, "item") else v for v in table.columns[column]]
    missing = next((i for i, value in enumerate(values) if value is None), None)
    if missing is not None:
        raise DataError(f'{table.row(missing)}: column "{column}" holds no label')
    for index, value in enumerate(values):
        if isinstance(value, str):
            refuse_half_characters(value, f'{table.row(index)}: column "{column}"')
    return values


def _as_int(table: Table, column: str, index: int, value: Any) -> int:
    if isinstance(value, bool | int) or (isinstance(value, float) and value.is_integer()):
        number = int(value)
    elif isinstance(value, float):
        raise DataError(f"{table.row(index)}: label {value} is not a class; for numbers set task=text-regression")
    else:
        raise DataError(f'{table.row(index)}: label {value!r} in column "{column}" is not a class number')
    if number < 0:
        raise DataError(f"{table.row(index)}: label {number} is out of range: classes are 0, 1, ... (unlabelled rows?)")
    return number


def _check_count(table: Table, names: tuple[str, ...], num_labels: int | None) -> None:
    if num_labels is not None and num_labels != len(names):
        raise DataError(f"{table.where}: data.num_labels is {num_labels}, but there are {len(names)} class names")
    if len(names) < 2:
        told = f'only one class ("{names[0]}")' if names else "no classes"
        raise DataError(f"{table.where}: {told}; there is nothing to tell apart")


def _some(gaps: list[int]) -> str:
    return ", ".join(map(str, gaps[:5])) + (", ..." if len(gaps) > 5 else "")
