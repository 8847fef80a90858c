"""The methods of a study with every knob settled: grids expanded, learning rates assigned."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import Any

from rmlora.compare.study import MethodEntry, Study
from rmlora.config import LoraSettings
from rmlora.errors import ConfigError, MethodError, nearest
from rmlora.methods import METHODS
from rmlora.sections import Section

SYSTEMS = ("mixture", "continual", "federated", "derivative_free")
"""Groups of settings of which a method may have its own."""


class Contender(Section):
    """A method with all its knobs settled, as it takes part in the study.

    Attributes:
        label: its display name; of a grid with the knobs that vary.
        entry: label of the entry it comes from, by which learning rates are given.
        lora: adapter settings, the study's and its own over them.
        system: settings of the study's mode, where that is a group of settings: the study's and its own over them.
    """

    label: str
    entry: str
    method: str
    args: dict[str, Any]
    lora: LoraSettings
    system: dict[str, Any]
    rates: tuple[float, ...]


def contenders(study: Study) -> list[Contender]:
    """List the methods that take part, grids expanded, in the order of the study.

    Raises:
        ConfigError: no such method, or learning rates for a label that is none.
        MethodError: a knob does not exist or its value is out of range.
    """
    labels = [entry.label or entry.name for entry in study.methods]
    rates = study.learning_rates
    if isinstance(rates, dict):
        for label in rates:
            if label not in labels:
                raise ConfigError(f'learning_rates: no method is labelled "{label}"{nearest(label, labels)}')
    found = []
    for entry, label in zip(study.methods, labels, strict=True):
        if entry.name not in METHODS:
            known = list(METHODS)
            raise ConfigError(
                f'unknown method "{entry.name}"{nearest(entry.name, known)}; there are {", ".join(known)}'
            )
        own = rates.get(label) if isinstance(rates, dict) else rates
        if not own:
            raise ConfigError(f'learning_rates has none for the method "{label}"')
        refuse_twice(f"learning rate of {label}", own)
        if min(own) <= 0:
            raise ConfigError(f"learning_rates of {label}: must be above 0, got {min(own)}")
        lora, system = _adapter(label, entry, study), _system(label, entry, study)
        for name, args in _grid(label, entry.args):
            _try(name, entry.name, args)
            settled: dict[str, Any] = {"method": entry.name, "args": args, "lora": lora, "system": system}
            found.append(Contender(label=name, entry=label, rates=tuple(own), **settled))
    return found


def selects(study: Study) -> bool:
    """Whether there is anything to select: with one learning rate per method there is not."""
    return any(len(contender.rates) > 1 for contender in contenders(study))


def refuse_twice(what: str, values: Sequence[Hashable]) -> None:
    """Refuse a list that names a value twice.

    Raises:
        ConfigError: it does.
    """
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ConfigError(f"duplicated cell: {what} {twice} is given twice")


def _try(label: str, method: str, args: dict[str, Any]) -> None:
    try:
        METHODS[method].build(**args)
    except MethodError as error:
        raise MethodError(f"{label}: {error}") from error


def _adapter(label: str, entry: MethodEntry, study: Study) -> LoraSettings:
    own = entry.lora.model_dump(exclude_unset=True)
    if own and METHODS[entry.name].trains_base:
        raise ConfigError(f"{label} has no adapter, so its own lora settings would change nothing; leave them out")
    if "r" in own:
        raise ConfigError(f"{label}: lora.r differs between cells; list every rank under ranks")
    return LoraSettings(**(study.lora.model_dump(exclude_unset=True) | own))


def _system(label: str, entry: MethodEntry, study: Study) -> dict[str, Any]:
    """Settings of a system of several adapters or parties, which may differ from method to method."""
    own_name = study.mode.replace("-", "_")
    for name in SYSTEMS:
        if getattr(entry, name) and name != own_name:
            raise ConfigError(f"{label}: {name} has no meaning in mode {study.mode}; leave it out")
    if own_name not in SYSTEMS:
        return {}
    own: dict[str, Any] = getattr(entry, own_name)
    known = list(type(getattr(study, own_name)).model_fields)
    for name in own:
        if name not in known:
            raise ConfigError(f'{label}: unknown setting "{own_name}.{name}"{nearest(name, known)}')
    return dict(getattr(study, own_name).model_dump(exclude_unset=True) | own)


def _grid(label: str, args: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    varied = [name for name, value in args.items() if isinstance(value, list)]
    empty = next((name for name in varied if not args[name]), None)
    if empty is not None:
        raise ConfigError(f"{label}: the list of {empty} is empty, so there is no method to compare")
    points = []
    for values in itertools.product(*(args[name] for name in varied)):
        chosen = dict(zip(varied, values, strict=True))
        text = "".join(
            f" {name}={value:g}" if isinstance(value, float) else f" {name}={value}" for name, value in chosen.items()
        )
        points.append((label + text, args | chosen))
    return points
