"""The examples of a run: read, checked and labelled, before any model is loaded."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmlora.config import DataConfig, Task
from rmlora.errors import DataError
from rmlora.tasks.glue import MISMATCHED, glue_name
from rmlora.tasks.holdout import carve
from rmlora.tasks.hub import read_hub
from rmlora.tasks.labels import Classes, find_classes, to_ids, to_numbers
from rmlora.tasks.readers import read_file
from rmlora.tasks.squad import ANSWERS, CONTEXTS, QUESTIONS, read_questions
from rmlora.tasks.table import (
    COMPLETIONS,
    IMAGES,
    LABELS,
    PROMPTS,
    Table,
    check_completions,
    check_texts,
    take,
    take_text,
)

_USUAL_LABELS: dict[Task, tuple[str, ...]] = {"question-answering": ANSWERS, "causal-lm": COMPLETIONS}


@dataclass(frozen=True)
class Examples:
    """One part of the data.

    Attributes:
        inputs: the columns the model reads, in order: one text, two texts, prompts, or images.
        labels: class ids, numbers of a regression, completions of the prompts, or the `Question` asked.
    """

    inputs: tuple[Sequence[Any], ...]
    labels: list[Any]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TaskData:
    """Both parts of the data and what they say about the task.

    Attributes:
        task: kind of task.
        train: examples to learn from.
        eval: held-out examples.
        classes: None where the task has none.
        columns: names of the input columns and of the label, for the record.
        files: local files that were read, to be hashed; empty for a Hub data set.
        others: further held-out parts by name, evaluated beside `eval`: MNLI's "mismatched".
    """

    task: Task
    train: Examples
    eval: Examples
    classes: Classes | None
    columns: tuple[str, ...]
    files: tuple[Path, ...]
    others: dict[str, Examples] = field(default_factory=dict)

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
        seed: of the samples, if the configuration asks for samples and has no `sample_seed`.

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
    label = take(train, config.label, _USUAL_LABELS.get(task, LABELS), "data.label")
    classes = None
    if task.endswith("-classification"):
        classes = find_classes(train, label, config.num_labels, config.label_names)
    seed = seed if config.sample_seed is None else config.sample_seed
    learnt = _examples(train, columns, label, classes, task)
    if config.train_per_class is not None:
        learnt = _sample_each_class(learnt, classes, config, seed)
    learnt = _sample(learnt, config.train_examples, seed)
    if held_out is None:
        kept, held = carve(learnt.labels if classes else [0] * len(learnt), config.holdout or 0, config.holdout_seed)
        learnt, reported = _pick(learnt, kept), _pick(learnt, held)
    else:
        for column, setting in (*zip(columns, ("text", "text_pair"), strict=False), (label, "label")):
            take(held_out, column, (), f"data.{'image' if task.startswith('image') else setting}")
        reported = _examples(held_out, columns, label, classes, task)
    reported = _sample(reported, config.eval_examples, seed)
    other = _read_mismatched(config)
    others = {} if other is None else {"mismatched": _examples(other, columns, label, classes, task)}
    others = {name: _sample(own, config.eval_examples, seed) for name, own in others.items()}
    files = tuple(Path(f).expanduser() for f in dict.fromkeys((config.train, config.eval, config.eval_mismatched)) if f)
    return TaskData(task, learnt, reported, classes, (*columns, label), files, others)


def read_examples(path: str, data: TaskData) -> tuple[Examples, bool]:
    """Read another file of a task's examples, with the columns and classes of its data.

    Args:
        path: the file.
        data: of the task, from `load_data`.

    Returns:
        The examples, and whether they have labels; classification and regression may lack them, and are given zeros.

    Raises:
        DataError: the file cannot be read, or lacks a column.
    """
    table = read_file(path, "eval")
    *columns, label = data.columns
    for column in columns:
        take(table, column, (), "data.image" if data.task == "image-classification" else "data.text")
    if label not in table.columns and data.task not in _USUAL_LABELS:
        inputs = tuple(_inputs(table, column, data.task) for column in columns)
        return Examples(inputs, [0] * len(inputs[0])), False
    take(table, label, (), "data.label")
    return _examples(table, columns, label, data.classes, data.task), True


def _read(config: DataConfig) -> tuple[Table, Table | None]:
    """Read both parts; with a holdout nothing but the training part is opened."""
    if config.holdout is not None and (config.eval or config.eval_split):
        raise DataError("give either data.holdout, which evaluates on a part of train, or data.eval, not both")
    if config.dataset is not None:
        if config.train is not None or config.eval is not None:
            raise DataError("give either data.dataset or data.train and data.eval, not both")
        split = config.train_split if config.holdout is not None else config.eval_split
        train, held_out = read_hub(config.dataset, config.train_split, split)
        return train, None if config.holdout is not None else held_out
    if config.train is None:
        raise DataError("no data: give data.train and data.eval (files), or data.dataset (Hub)")
    if config.holdout is not None:
        return read_file(config.train, "train"), None
    if config.eval is None and not config.train.endswith(".npz"):
        raise DataError(f'no held-out data: "{config.train}" is for training; give data.eval')
    train = read_file(config.train, "train")
    return train, read_file(config.eval or config.train, "eval")


def _read_mismatched(config: DataConfig) -> Table | None:
    """Read MNLI's second held-out part; a run that holds out a part of train looks at neither."""
    if config.holdout is not None:
        return None
    if config.eval_mismatched is not None:
        return read_file(config.eval_mismatched, "eval")
    if config.dataset is None or glue_name(config) != "mnli" or config.eval_split == MISMATCHED:
        return None
    return read_hub(config.dataset, config.train_split, MISMATCHED)[1]


def _examples(table: Table, columns: Sequence[str], label: str, classes: Classes | None, task: Task) -> Examples:
    if task == "question-answering":
        return Examples(*read_questions(table, columns, label))
    return Examples(tuple(_inputs(table, column, task) for column in columns), _labels(table, label, classes, task))


def _labels(table: Table, label: str, classes: Classes | None, task: Task) -> list[Any]:
    if task == "causal-lm":
        return check_completions(table, label)
    return to_numbers(table, label) if classes is None else to_ids(table, label, classes)


def _input_columns(config: DataConfig, task: Task, train: Table) -> tuple[str, ...]:
    if task == "image-classification":
        return (take(train, config.image, IMAGES, "data.image"),)
    if task == "question-answering":
        return (
            take(train, config.text, QUESTIONS, "data.text"),
            take(train, config.text_pair, CONTEXTS, "data.text_pair"),
        )
    if task == "causal-lm":
        return (take(train, config.text, PROMPTS, "data.text"),)
    first, second = take_text(train, config.text, config.text_pair)
    return (first,) if second is None else (first, second)


def _inputs(table: Table, column: str, task: Task) -> Sequence[Any]:
    return table.columns[column] if task == "image-classification" else check_texts(table, column)


def _sample(examples: Examples, limit: int | None, seed: int) -> Examples:
    if limit is None or limit >= len(examples):
        return examples
    return _pick(examples, sorted(random.Random(seed).sample(range(len(examples)), limit)))


def _sample_each_class(examples: Examples, classes: Classes | None, config: DataConfig, seed: int) -> Examples:
    """As many examples of every class, in the order of the file."""
    if classes is None:
        raise DataError("data.train_per_class needs a task with classes; give data.train_examples instead")
    if config.train_examples is not None:
        raise DataError("give either data.train_per_class or data.train_examples, not both")
    members: dict[int, list[int]] = {index: [] for index in range(len(classes.names))}
    for index, label in enumerate(examples.labels):
        members[label].append(index)
    wanted = config.train_per_class or 0
    scarce = next((index for index, own in members.items() if len(own) < wanted), None)
    if scarce is not None:
        raise DataError(
            f'data.train_per_class={wanted}, but class "{classes.names[scarce]}" has {len(members[scarce])} examples'
        )
    rng = random.Random(seed)
    return _pick(examples, sorted(index for own in members.values() for index in rng.sample(own, wanted)))


def _pick(examples: Examples, chosen: Sequence[int]) -> Examples:
    inputs = tuple([column[i] for i in chosen] for column in examples.inputs)
    return Examples(inputs, [examples.labels[i] for i in chosen])
