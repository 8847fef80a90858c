"""Handing the cells of a study to jobs on other machines, one cell a job, and seeing to it that none is lost."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

from rmlora.compare import claims
from rmlora.compare.agenda import Agenda
from rmlora.compare.cells import Cell
from rmlora.compare.remote import Ended
from rmlora.compare.store import Store
from rmlora.compare.study import Study
from rmlora.compare.work import POLL_SECONDS
from rmlora.errors import ConfigError, RmloraError
from rmlora.run.faults import DiskFullError

# A cell that another coordinator's job has is looked at again after so long.
_HELD_SECONDS = 5.0
# A job that is refused while others run, as a queue may be full, is submitted again after so long.
_REFUSED_SECONDS = 30.0


class Pool(Protocol):
    """Machines that run jobs: a Ray cluster, a batch system."""

    def submit(self, cell: str, job: str) -> Any:
        """Start a job for a cell; return something hashable to know it by; a ConfigError says why it is refused."""

    def ended(self, jobs: Sequence[Any], seconds: float) -> list[tuple[Any, Ended]]:
        """Wait for so long, or until a job has ended; return those that have."""

    def cancel(self, jobs: Sequence[Any]) -> None:
        """End jobs, running or waiting, and wait until they have."""

    def close(self) -> None:
        """Remove what was needed for the jobs."""


@dataclass
class Deaths:
    """How often jobs died, cell by cell; one that has finished an epoch since its last death begins anew.

    Attributes:
        retries: how often a cell is tried again.
    """

    retries: int
    counts: Counter[str] = field(default_factory=Counter)
    steps: dict[str, int] = field(default_factory=dict)

    def add(self, key: str, step: int) -> bool:
        """Count a death; return whether it was one too many."""
        if step > self.steps.get(key, 0):
            self.counts[key] = 0
        self.steps[key] = step
        self.counts[key] += 1
        return self.counts[key] > self.retries


@dataclass(frozen=True)
class Dispatcher:
    """The coordinator of a study's jobs.

    Attributes:
        study: as written in the folder.
        store: its folder; what lies in it is all that counts.
        pool: where jobs run.
        workers: jobs side by side.
        retries: how often a cell whose job died is tried again before it is given up.
        say: called with a line about jobs that had to be cancelled.
    """

    study: Study
    store: Store
    pool: Pool
    workers: int
    retries: int
    say: Callable[[str], None] = lambda line: None

    def run(self, seen: Callable[[Agenda], None]) -> None:
        """Run what is left of the study.

        Args:
            seen: called with the agenda each time it has been read.

        Raises:
            DiskFullError: there is no space left.
            RmloraError: a machine does not see the folder, or jobs end before they take a cell.
        """
        running: dict[Any, tuple[Cell, str]] = {}
        try:
            self._run(seen, running)
        except BaseException:
            self._cancel(running)
            raise
        finally:
            self.pool.close()

    def _run(self, seen: Callable[[Agenda], None], running: dict[Any, tuple[Cell, str]]) -> None:
        agenda, deaths = Agenda(self.study, self.store).look(), Deaths(self.retries)
        run = secrets.token_hex(4)
        names = (f"{run}-{number}" for number in count(1))
        not_before: dict[str, float] = {}
        while agenda.having("open") or running:
            seen(agenda)
            busy = {cell.id for cell, _ in running.values()}
            for cell in agenda.having("open"):
                is_due = cell.id not in busy and not_before.get(cell.id, 0.0) <= time.monotonic()
                if not is_due or len(running) >= self.workers:
                    continue
                if self.store.is_held(cell):
                    not_before[cell.id] = time.monotonic() + _HELD_SECONDS
                    continue
                if not self._submit(cell, next(names), running):
                    not_before[cell.id] = time.monotonic() + _REFUSED_SECONDS
            for handle, ended in self.pool.ended(list(running), POLL_SECONDS):
                cell, job = running.pop(handle)
                if not self._settle(cell, job, ended, deaths):
                    not_before[cell.id] = time.monotonic() + _HELD_SECONDS
            agenda.look()
        seen(agenda)

    def _submit(self, cell: Cell, job: str, running: dict[Any, tuple[Cell, str]]) -> bool:
        try:
            running[self.pool.submit(cell.id, job)] = cell, job
        except ConfigError:
            if not running:
                raise
            return False
        return True

    def _settle(self, cell: Cell, job: str, ended: Ended, deaths: Deaths) -> bool:
        """Take a job's end; a cell whose jobs died too often is given up, and stops nobody.

        Returns:
            Whether the job had its cell.
        """
        if ended.full is not None:
            raise DiskFullError(ended.full)
        if ended.unseen is not None:
            raise RmloraError(f"{ended.unseen}: the study, its models and its data must be on a shared file system")
        if ended.died is None:
            deaths.counts.pop("", None)
            return ended.had_cell
        had_cell = claims.drop(self.store.claim(cell), job) or ended.had_cell
        if not had_cell:
            if deaths.add("", 0):
                raise RmloraError(f"jobs end before they take a cell: {ended.died}")
        elif deaths.add(cell.id, self.store.steps(cell)) and self.store.state(cell) == "open":
            times = deaths.counts[cell.id]
            self.store.fail(cell, f"its job died {times} times without an epoch finished in between: {ended.died}")
        return had_cell

    def _cancel(self, running: dict[Any, tuple[Cell, str]]) -> None:
        """End all jobs, so that nobody works on after an interruption."""
        if not running:
            return
        with contextlib.suppress(Exception):  # what stopped the study is what has to be told
            self.pool.cancel(list(running))
            for cell, job in running.values():
                claims.drop(self.store.claim(cell), job)
        self.say(
            f"{len(running)} jobs were cancelled; finished cells are safe, cut off ones go on from their last epoch"
        )
