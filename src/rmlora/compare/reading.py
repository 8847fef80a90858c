"""From a file to a study that is known to be fair and to say nothing twice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rmlora.compare.contenders import SYSTEMS, Contender, contenders, refuse_twice, selects
from rmlora.compare.foresight import foresee_cells
from rmlora.compare.study import MethodEntry, Study, TaskEntry
from rmlora.config import TrainingConfig
from rmlora.config_source import read_config
from rmlora.errors import ConfigError, RmloraError, nearest
from rmlora.methods import METHODS

_GROUPS = (
    "selection",
    "lora",
    "head",
    "training",
    "evaluation",
    "slurm",
    *SYSTEMS,
)  # left empty they mean their defaults, as in a run


def read_study(path: Path) -> Study:
    """Read a study's file and check it.

    Raises:
        ConfigError: the file cannot be read, or what it says contradicts itself; see `check_study`.
    """
    return make_study(read_config(path), str(path))


def make_study(settings: dict[str, Any], where: str = "study") -> Study:
    """Check settings, nested as a file has them, and fill in the defaults.

    Args:
        settings: of the study.
        where: named in errors.

    Raises:
        ConfigError: unknown key (the nearest is named), wrong type, missing, unequal budgets, a cell given twice, or
            a knob that does not suit its method or a rank; see `check_study`.

    Example:
        >>> settings = {"name": "s", "models": ["m"], "methods": ["lora", "r-lora"], "seeds": [0]}
        >>> task = {"name": "t", "data": {"train": "a.csv", "eval": "b.csv"}}
        >>> study = make_study(settings | {"tasks": [task], "learning_rates": [1e-3, 3e-3]})
        >>> [(c.label, len(c.rates)) for c in contenders(study)]
        [('lora', 2), ('r-lora', 2)]
    """
    settings = {k: {} if v is None and k in _GROUPS else v for k, v in settings.items()}
    try:
        study = Study.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_describe(error)}") from error
    try:
        check_study(study)
    except RmloraError as error:
        raise ConfigError(f"{where}: {error}") from error
    return study


def check_study(study: Study) -> None:
    """Refuse a study that is unfair, says something twice, or whose cells could not run.

    Raises:
        ConfigError: a method has more learning rates than another, a cell would occur twice, a seed of the reported
            runs is the selection's, a task names no reported split of its own, or a setting does not suit the task,
            the mode or the method.
        MethodError: a knob is unknown or out of range, or a method does not suit one of the ranks.
    """
    found = contenders(study)
    counts = {c.label: len(c.rates) for c in found}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{label} {count}" for label, count in counts.items())
        raise ConfigError(
            f"unequal budgets: learning rates per method are {told}; the comparison is fair only if every method may "
            "try equally many"
        )
    refuse_twice("label", [c.label for c in found])
    _refuse_twins(found)
    for name in ("models", "ranks", "seeds"):
        refuse_twice(name.removesuffix("s"), getattr(study, name))
    refuse_twice("task", [task.name for task in study.tasks])
    refuse_twice("task", [task.model_dump_json(exclude={"name"}) for task in study.tasks])
    if selects(study) and study.selection.seed in study.seeds:
        raise ConfigError(
            f"seed {study.selection.seed} is the selection's and one of `seeds`: reported runs need fresh seeds"
        )
    for task in study.tasks:
        _check_task(task)
    foresee_cells(study)


def _refuse_twins(found: Sequence[Contender]) -> None:
    """Refuse one method under two labels, unless no learning rate is common to both."""
    chains: dict[str, dict[float, str]] = {}
    for contender in found:
        chain = METHODS[contender.method].build(**contender.args)
        key = f"{contender.method} {chain!r} {contender.lora!r} {contender.system!r}"
        labels = chains.setdefault(key, {})
        twin = next((labels[rate] for rate in contender.rates if rate in labels), None)
        if twin is not None:
            raise ConfigError(
                f'duplicated cell: methods "{twin}" and "{contender.label}" are the same '
                f"({contender.method}, {contender.args})"
            )
        labels |= dict.fromkeys(contender.rates, contender.label)


def _check_task(task: TaskEntry) -> None:
    if task.data.holdout is not None:
        raise ConfigError(f'task "{task.name}": the study itself carves from train; leave data.holdout out')
    differing = sorted({"lr", "seed"} & task.training.keys())
    if differing:
        raise ConfigError(f'task "{task.name}": training.{differing[0]} differs between cells; it cannot be set here')
    known = list(TrainingConfig.model_fields)
    for name in task.training:
        if name not in known:
            raise ConfigError(f'task "{task.name}": unknown setting "training.{name}"{nearest(name, known)}')


def _describe(error: ValidationError) -> str:
    """Put pydantic's report into one line: the first problem, and how many more there are."""
    problems = error.errors()
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    # Of the ways in which a setting may be given, the one that was followed furthest is the one that was meant.
    tried = [p for p in problems if p["loc"][:1] == first["loc"][:1] and _is_branch(p["loc"][1:2])]
    first = max(tried, key=lambda p: len(p["loc"])) if _is_branch(first["loc"][1:2]) else first
    parts = _named(first["loc"], is_own=first["type"] == "extra_forbidden")
    name, rest = ".".join(parts), len({tuple(p["loc"][:1] if p in tried else p["loc"][:2]) for p in problems}) - 1
    if first["type"] == "extra_forbidden":
        text = f'unknown setting "{name}"{nearest(parts[-1], list(_names_beside(parts[:-1])))}'
    elif first["type"] == "missing":
        text = f'"{name}" is missing'
    elif first["type"] == "value_error":
        text = first["msg"].removeprefix("Value error, ")
    else:
        known = re.findall("'([^']+)'", first.get("ctx", {}).get("expected", ""))
        said = re.sub(r" or instance of \w+$", "", first["msg"][0].lower() + first["msg"][1:])
        said = said.replace("valid dictionary", "group of settings")
        text = f'"{name}": {said}, got {first["input"]!r}{nearest(str(first["input"]), known)}'
    return text + (f" (and {rest} more)" if rest else "")


def _named(place: Sequence[int | str], is_own: bool) -> list[str]:
    """The names of a place in pydantic's report: without types, though a name that a user made up may look like one."""
    last = len(place) - 1
    return [str(part) for i, part in enumerate(place) if i == 0 or (is_own and i == last) or not _is_branch([part])]


def _is_branch(parts: Sequence[int | str]) -> bool:
    """Whether the next part of a place in pydantic's report is a type, not a name."""
    return any("[" in str(part) for part in parts)


def _names_beside(parts: Iterable[str]) -> Iterable[str]:
    """Names of the settings of the group that `parts` leads to."""
    section: Any = Study
    for part in parts:
        if part.isdigit():
            continue
        inside = {"methods": MethodEntry, "tasks": TaskEntry}
        section = inside.get(part) or section.model_fields[part].annotation
    return getattr(section, "model_fields", {})
