"""The cells of a study: one training run each, known by the hash of its resolved configuration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from rmlora.compare.contenders import SYSTEMS, Contender, contenders, selects
from rmlora.compare.study import Study, TaskEntry
from rmlora.config import RunConfig
from rmlora.config_source import resolve
from rmlora.errors import ConfigError
from rmlora.methods import METHODS
from rmlora.run.choice import complete

Kind = Literal["select", "final"]

CAME_LATER = (("data", "train_per_class", None), ("training", "evaluate_every", 1))
"""Settings left out of a cell's hash at these values, so that cells finished before they existed keep their ids."""

LATER_GROUPS = ("evaluation", *SYSTEMS)
"""The same for groups of settings, left out where they hold nothing but defaults."""


class Group(NamedTuple):
    """What one learning rate is chosen for; r is None for a method without adapter."""

    model: str
    task: str
    r: int | None
    label: str


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        id: 16 hexadecimal digits, from the configuration alone: the same run in two studies has one id.
        kind: "select" is judged on a part carved from train, "final" on the reported split.
        group: what it belongs to.
        lr: learning rate.
        seed: of the run.
        config: complete, without an output folder.
    """

    id: str
    kind: Kind
    group: Group
    lr: float
    seed: int
    config: RunConfig

    @property
    def title(self) -> str:
        """The cell as a person would name it."""
        model = self.group.model.rstrip("/").rpartition("/")[2]
        rank = "" if self.group.r is None else f" r={self.group.r}"
        what = f"{self.group.label}{rank} on {self.group.task}, {model}, lr={self.lr:g}"
        return f"{what}, selection" if self.kind == "select" else f"{what}, seed {self.seed}"


def selection_cells(study: Study) -> list[Cell]:
    """List the runs that choose the learning rates; none where each method has but one.

    They train on a part of train and are judged on the rest of it. The reported split is not named in their
    configuration, so nothing they do can open it.
    """
    if not selects(study):
        return []
    seed = study.selection.seed
    return _distinct(
        _cell(study, "select", own, task, group, lr, seed) for own, task, group in _groups(study) for lr in own.rates
    )


def final_cells(study: Study, rates: Mapping[Group, float]) -> list[Cell]:
    """List the reported runs, with fresh seeds, of all groups whose learning rate is known.

    Args:
        study: of the cells.
        rates: chosen rate of each group; a group that is missing has to wait.
    """
    return _distinct(
        _cell(study, "final", own, task, group, rates[group], seed)
        for own, task, group in _groups(study)
        if group in rates
        for seed in study.seeds
    )


def only_rates(study: Study) -> dict[Group, float]:
    """Return the rate of each group where nothing has to be selected; empty otherwise."""
    return {} if selects(study) else {group: own.rates[0] for own, _, group in _groups(study)}


def groups_of(study: Study) -> list[Group]:
    """List what learning rates are chosen for, in the order of the study."""
    return [group for _, _, group in _groups(study)]


def cell_id(config: RunConfig) -> str:
    """Hash a complete configuration; where its results lie does not count.

    Example:
        >>> a, b = (RunConfig(model="m", output=folder) for folder in ("x", "y"))
        >>> cell_id(a) == cell_id(b) != cell_id(RunConfig(model="n")), len(cell_id(a))
        (True, 16)
    """
    plain = config.model_dump(mode="json", exclude={"output"})
    for name in LATER_GROUPS:
        if getattr(config, name) == type(getattr(config, name))():
            del plain[name]
    for section, name, default in CAME_LATER:
        if plain[section][name] == default:
            del plain[section][name]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _groups(study: Study) -> Iterator[tuple[Contender, TaskEntry, Group]]:
    for model in study.models:
        for task in study.tasks:
            for own in contenders(study):
                ranks: Sequence[int | None] = [None] if METHODS[own.method].trains_base else study.ranks
                for r in ranks:
                    yield own, task, Group(model, task.name, r, own.label)


def _cell(study: Study, kind: Kind, own: Contender, task: TaskEntry, group: Group, lr: float, seed: int) -> Cell:
    data = task.data.model_dump(exclude_unset=True)
    data.setdefault("sample_seed", 0)  # every cell sees the same sample
    if kind == "select":
        data = {name: value for name, value in data.items() if name not in ("eval", "eval_split", "eval_examples")}
        data |= {"holdout": study.selection.fraction, "holdout_seed": study.selection.seed}
    settings: dict[str, Any] = {
        "model": group.model,
        **({"task": task.task} if "task" in task.model_fields_set else {}),  # GLUE knows its own
        "scope": study.mode,
        "head": study.head.model_dump(exclude_unset=True),
        **({study.mode.replace("-", "_"): own.system} if own.system else {}),
        "data": data,
        "method": own.method,
        "method_args": own.args,
        "lora": {} if group.r is None else own.lora.model_dump(exclude_unset=True) | {"r": group.r},
        "training": study.training.model_dump(exclude_unset=True) | task.training | {"lr": lr, "seed": seed},
        "evaluation": _evaluation(study, own) if kind == "final" else {},
        "trust_remote_code": study.trust_remote_code,
    }
    config = complete(resolve(settings, f'task "{task.name}"')).model_copy(update={"output": None})
    return Cell(cell_id(config), kind, group, lr, seed, config)


def _evaluation(study: Study, own: Contender) -> dict[str, Any]:
    """What of the study's evaluation concerns a method: an ensemble, if it draws at random."""
    told = study.evaluation.model_dump(exclude_unset=True)
    return told if METHODS[own.method].build(**own.args).samples else {}


def _distinct(cells: Iterator[Cell]) -> list[Cell]:
    found: dict[str, Cell] = {}
    for cell in cells:
        if cell.id in found:
            raise ConfigError(f"duplicated cell: ({found[cell.id].title}) and ({cell.title}) are the same run")
        found[cell.id] = cell
    return list(found.values())
