"""Which classes form which task."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from rmlora.errors import ConfigError, DataError, nearest
from rmlora.sections import ContinualSettings
from rmlora.tasks.data import Examples, TaskData

Tasks = tuple[tuple[int, ...], ...]
"""Class ids of each task, in the order in which tasks are learned."""


def split_classes(names: Sequence[str], settings: ContinualSettings, seed: int) -> Tasks:
    """Split classes into tasks: as `classes` names them, or evenly in an order drawn from a seed.

    Args:
        names: of class 0, 1, ...
        settings: `classes`, or `tasks` and `split_seed`.
        seed: of the order, if the settings have none.

    Returns:
        Ids of each task's classes; every class once. The first tasks have one class more where it does not divide.

    Raises:
        ConfigError: there are more tasks than classes; or a class is named twice, not at all, or does not exist.

    Example:
        >>> [len(task) for task in split_classes("abcdefg", ContinualSettings(tasks=3), seed=0)]
        [3, 2, 2]
        >>> split_classes(("no", "yes"), ContinualSettings(classes=[["yes"], ["no"]]), seed=0)
        ((1,), (0,))
    """
    if settings.classes:
        return _named(names, [[str(name) for name in part] for part in settings.classes])
    if settings.tasks > len(names):
        raise ConfigError(
            f"continual.tasks={settings.tasks}, but the data has {len(names)} classes; give at most {len(names)}"
        )
    order = list(range(len(names)))
    random.Random(seed if settings.split_seed is None else settings.split_seed).shuffle(order)
    small, larger = divmod(len(order), settings.tasks)
    sizes = [small + (task < larger) for task in range(settings.tasks)]
    ends = [sum(sizes[: task + 1]) for task in range(settings.tasks)]
    return tuple(tuple(order[end - size : end]) for size, end in zip(sizes, ends, strict=True))


def check_examples(tasks: Tasks, data: TaskData) -> None:
    """Refuse a task that has nothing to learn from, or nothing to be measured on.

    Raises:
        DataError: names the task, its classes and the part of the data.
    """
    assert data.classes is not None
    for part, examples in (("train", data.train), ("eval", data.eval)):
        found = set(examples.labels)
        for number, classes in enumerate(tasks, 1):
            if not found & set(classes):
                told = ", ".join(data.classes.names[c] for c in classes[:3]) + (", ..." if len(classes) > 3 else "")
                raise DataError(
                    f"task {number} ({told}) has no example in data.{part}; put its classes into other tasks "
                    "(continual.classes), or take more examples"
                )


def pick_classes(examples: Examples, classes: Sequence[int]) -> list[int]:
    """Return the positions of the examples of some classes, in the order of the data.

    Example:
        >>> pick_classes(Examples((["a", "b", "c"],), [2, 0, 2]), [2, 1])
        [0, 2]
    """
    wanted = set(classes)
    return [index for index, label in enumerate(examples.labels) if label in wanted]


def _named(names: Sequence[str], parts: Sequence[Sequence[str]]) -> Tasks:
    ids = {name: index for index, name in enumerate(names)}
    told = [name for part in parts for name in part]
    unknown = next((name for name in told if name not in ids), None)
    if unknown is not None:
        raise ConfigError(f'continual.classes: no class "{unknown}" in the data{nearest(unknown, list(names))}')
    twice = next((name for name, count in Counter(told).items() if count > 1), None)
    if twice is not None:
        raise ConfigError(f'continual.classes: "{twice}" is named {told.count(twice)} times; tasks share no class')
    if len(parts) < 2:
        raise ConfigError("continual.classes has one task; give at least two, or leave scope=continual out")
    left = [name for name in names if name not in told]
    if left:
        raise ConfigError(f'continual.classes: "{left[0]}" is in no task ({len(left)} classes are not); add it to one')
    return tuple(tuple(ids[name] for name in part) for part in parts)
