"""The examples of a run: read, checked and labelled, before any model is loaded."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmlora.config import DataConfig, Task
from rmlora.errors import DataError
from rmlora.tasks.hub import read_hub
from rmlora.tasks.labels import Classes, find_classes, to_ids, to_numbers
from rmlora.tasks.readers import read_file
from rmlora.tasks.table import IMAGES, LABELS, Table, check_texts, take, take_text


@dataclass(frozen=True)
class Examples:
    """One part of the data.

    Attributes:
        inputs: the columns the model reads, in order: one text, two texts, or images.
        labels: class ids, or numbers of a regression.
    """

    inputs: tuple[Sequence[Any], ...]
    labels: list[int] | list[float]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TaskData:
    """Both parts of the data and what they say about the task.

    Attributes:
        task: kind of task.
        train: examples to learn from.
        eval: held-out examples.
        classes: None for a regression.
        columns: names of the input columns and of the label, for the record.
        files: local files that were read, to be hashed; empty for a Hub data set.
    """

    task: Task
    train: Examples
    eval: Examples
    classes: Classes | None
    columns: tuple[str, ...]
    files: tuple[Path, ...]

    @property
    def majority(self) -> float | None:
        """Share of the commonest class among the held-out labels: what guessing would score."""
        if self.classes is None:
            return None
        return max(Counter(self.eval.labels).values()) / len(self.eval)


def load_data(config: DataConfig, task: Task, seed: int = 0) -> TaskData:
    """Read and check the examples a configuration names.

    Args:
        config: the data section.
        task: kind of task, which decides what inputs and labels may be.
        seed: of the samples, if the configuration asks for samples.

    Raises:
        DataError: anything that would go wrong later, by file, row and column.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = path.write_text("text,label\\ngood,yes\\nbad,no\\n")
        >>> data = load_data(DataConfig(train=str(path), eval=str(path)), "text-classification")
        >>> data.classes.names, data.train.labels, data.columns
        (('no', 'yes'), [1, 0], ('text', 'label'))
    """
    train, held_out = _read(config)
    columns = _input_columns(config, task, train)
    label = take(train, config.label, LABELS, "data.label")
    for column, setting in (*zip(columns, ("text", "text_pair"), strict=False), (label, "label")):
        take(held_out, column, (), f"data.{'image' if task.startswith('image') else setting}")
    classes = None
    if task != "text-regression":
        classes = find_classes(train, label, config.num_labels, config.label_names)
    parts = []
    for table, limit in ((train, config.train_examples), (held_out, config.eval_examples)):
        labels = to_numbers(table, label) if classes is None else to_ids(table, label, classes)
        inputs = tuple(_inputs(table, column, task) for column in columns)
        parts.append(_sample(Examples(inputs, labels), limit, seed))
    files = tuple(Path(f).expanduser() for f in dict.fromkeys((config.train, config.eval)) if f)
    return TaskData(task, parts[0], parts[1], classes, (*columns, label), files)


def _read(config: DataConfig) -> tuple[Table, Table]:
    if config.dataset is not None:
        if config.train is not None or config.eval is not None:
            raise DataError("give either data.dataset or data.train and data.eval, not both")
        return read_hub(config.dataset, config.train_split, config.eval_split)
    if config.train is None:
        raise DataError("no data: give data.train and data.eval (files), or data.dataset (Hub)")
    if config.eval is None and not config.train.endswith(".npz"):
        raise DataError(f'no held-out data: "{config.train}" is for training; give data.eval')
    train = read_file(config.train, "train")
    return train, read_file(config.eval or config.train, "eval")


def _input_columns(config: DataConfig, task: Task, train: Table) -> tuple[str, ...]:
    if task == "image-classification":
        return (take(train, config.image, IMAGES, "data.image"),)
    first, second = take_text(train, config.text, config.text_pair)
    return (first,) if second is None else (first, second)


def _inputs(table: Table, column: str, task: Task) -> Sequence[Any]:
    return table.columns[column] if task == "image-classification" else check_texts(table, column)


def _sample(examples: Examples, limit: int | None, seed: int) -> Examples:
    if limit is None or limit >= len(examples):
        return examples
    chosen = sorted(random.Random(seed).sample(range(len(examples)), limit))
    inputs = tuple([column[i] for i in chosen] for column in examples.inputs)
    return Examples(inputs, [examples.labels[i] for i in chosen])
