"""Reading examples from a Hub data set, or a local folder laid out like one, through `datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rmlora.errors import DataError, nearest
from rmlora.tasks.table import Table

EVAL_SPLITS = ("validation", "validation_matched", "dev", "test")
# Benchmarks whose short names everybody uses, and where they live.
COLLECTIONS = {"glue": "nyu-mll/glue", "super_glue": "aps/super_glue"}


def split_name(dataset: str) -> tuple[str, str | None]:
    """Split a data set's name into its repository and its configuration.

    Example:
        >>> split_name("glue/rte"), split_name("PolyAI/banking77"), split_name("a/b/c")
        (('nyu-mll/glue', 'rte'), ('PolyAI/banking77', None), ('a/b', 'c'))
    """
    if Path(dataset).expanduser().is_dir():
        return str(Path(dataset).expanduser()), None
    head, *rest = dataset.split("/")
    if head in COLLECTIONS:
        return COLLECTIONS[head], "/".join(rest) or None
    if len(rest) == 2:
        return f"{head}/{rest[0]}", rest[1]
    return dataset, None


def read_hub(dataset: str, train_split: str, eval_split: str | None) -> tuple[Table, Table]:
    """Read the two splits of a Hub data set.

    Args:
        dataset: as `data.dataset`.
        train_split: name of the split to train on.
        eval_split: name of the other, or None for the first usual one that is there.

    Returns:
        The tables of training and evaluation.

    Raises:
        DataError: the data set, its configuration or a split cannot be had.
    """
    import datasets

    path, name = split_name(dataset)
    datasets.disable_progress_bars()
    try:
        splits: Any = datasets.load_dataset(path, name)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f'cannot load data set "{dataset}": {reason}') from error
    there = list(splits)
    chosen = eval_split or next((s for s in EVAL_SPLITS if s in there), "validation")
    for split, setting in ((train_split, "data.train_split"), (chosen, "data.eval_split")):
        if split not in there:
            hint = nearest(split, there)
            raise DataError(f'data set "{dataset}" has no split "{split}" ({setting}){hint}; it has {there}')
    return _table(splits[train_split], dataset, train_split), _table(splits[chosen], dataset, chosen)


def _table(split: Any, dataset: str, name: str) -> Table:
    if len(split) == 0:
        raise DataError(f'split "{name}" of data set "{dataset}" is empty')
    named = [f for f in split.features.values() if type(f).__name__ == "ClassLabel"]
    names = tuple(named[0].names) if len(named) == 1 else None
    return Table(f"{dataset}[{name}]", {column: split[column] for column in split.column_names}, names)
