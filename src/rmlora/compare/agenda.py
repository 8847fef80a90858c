"""What is done, running and left of a study, read off its folder: first the choice of learning rates, then the rest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rmlora.compare.cells import Cell, Group, final_cells, groups_of, only_rates, selection_cells
from rmlora.compare.store import State, Store
from rmlora.compare.study import Study
from rmlora.files import write_text


@dataclass(frozen=True)
class Choice:
    """How the learning rate of a group came about.

    Attributes:
        group: what it is for.
        rate: the chosen one; None if every one diverged.
        scores: what each rate reached on the selection split; None where it diverged.
    """

    group: Group
    rate: float | None
    scores: dict[float, float | None]


class Agenda:
    """The cells of a study and what has become of them; `look` reads the folder again.

    A cell that is done, failed or diverged stays so for the life of this object: it is never looked at twice.
    """

    def __init__(self, study: Study, store: Store) -> None:
        self.study = study
        self.store = store
        self.groups = groups_of(study)
        self.selection = selection_cells(study)
        self.rates = only_rates(study)
        self.final = final_cells(study, self.rates)
        self.choices: dict[Group, Choice] = {}
        self.states: dict[str, State] = {}
        self.results: dict[str, dict[str, Any]] = {}

    @property
    def cells(self) -> list[Cell]:
        """Every cell that is known by now."""
        return [*self.selection, *self.final]

    @property
    def waiting(self) -> int:
        """How many final cells cannot be named yet, because their learning rate is not chosen."""
        undecided = [g for g in self.groups if g not in self.rates and g not in self.choices and not self.blocked(g)]
        return len(undecided) * len(self.study.seeds)

    def look(self) -> Agenda:
        """Read what has changed since the last time; return this agenda."""
        self._look_at(self.selection)
        for group in self.groups:
            if group not in self.rates and group not in self.choices:
                self._choose(group)
        self._look_at(self.final)
        return self

    def having(self, *states: State) -> list[Cell]:
        """List the cells in one of these states, in the order of work."""
        return [cell for cell in self.cells if self.states.get(cell.id, "open") in states]

    def blocked(self, group: Group) -> bool:
        """Whether a selection run of the group failed, so that its rates were not tried equally."""
        return any(self.states.get(cell.id) == "failed" for cell in self.selection if cell.group == group)

    def _look_at(self, cells: Iterable[Cell]) -> None:
        for cell in cells:
            if self.states.get(cell.id, "open") == "open":
                state = self.states[cell.id] = self.store.state(cell)
                if state == "done":
                    self.results[cell.id] = self.store.result(cell) or {}

    def _choose(self, group: Group) -> None:
        own = [cell for cell in self.selection if cell.group == group]
        if any(self.states.get(cell.id) not in ("done", "diverged") for cell in own):
            return
        choice = choose(group, own, self.results, self.study.selection.by)
        self.choices[group] = choice
        if choice.rate is not None:
            self.rates[group] = choice.rate
            self.final = final_cells(self.study, self.rates)


def choose(group: Group, cells: Sequence[Cell], results: dict[str, dict[str, Any]], by: str) -> Choice:
    """Choose the learning rate with the highest metric on the selection split; of equal ones the smaller.

    Args:
        group: what it is for.
        cells: its selection runs, all settled.
        results: by cell id; a run that diverged has none, and cannot be chosen.
        by: "last" or "best" epoch.
    """
    scores: dict[float, float | None] = {}
    for cell in sorted(cells, key=lambda c: c.lr):
        found = results.get(cell.id)
        scores[cell.lr] = None if found is None else float(found[by][f"eval_{found['metric']}"])
    able = {rate: score for rate, score in scores.items() if score is not None}
    return Choice(group, max(able, key=lambda rate: able[rate], default=None), scores)


def write_choices(agenda: Agenda) -> None:
    """Write chosen.json: each group's learning rate and the scores it was chosen by."""
    told = [
        {
            **choice.group._asdict(),
            "lr": choice.rate,
            "by": agenda.study.selection.by,
            "scores": [{"lr": rate, "score": score} for rate, score in choice.scores.items()],
        }
        for choice in (agenda.choices[group] for group in agenda.groups if group in agenda.choices)
    ]
    write_text(agenda.store.chosen, json.dumps(told, indent=2) + "\n")
