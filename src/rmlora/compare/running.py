"""One study from beginning to end: make its folder ready, let a backend work, write what came of it."""

from __future__ import annotations

from typing import Any

import yaml
from rich.console import Console

from rmlora.compare.agenda import Agenda, write_choices
from rmlora.compare.backends import Backend, Place, prepare
from rmlora.compare.budget import show_budget
from rmlora.compare.contenders import contenders
from rmlora.compare.inference_budget import budget_lines
from rmlora.compare.inputs import note_inputs
from rmlora.compare.progress import ShowGrid, cell_line
from rmlora.compare.rows import Row, write_rows
from rmlora.compare.slurm_settings import SlurmSettings
from rmlora.compare.store import Store
from rmlora.compare.study import Study
from rmlora.errors import RmloraError
from rmlora.files import check_writable, write_text
from rmlora.run.trainer import quieten
from rmlora.run.wording import say


def compare(
    study: Study,
    *,
    workers: int | None = None,
    threads: int | None = None,
    backend: Backend = "local",
    gpus: float | None = None,
    retries: int | None = None,
    slurm: SlurmSettings | None = None,
    console: Console | None = None,
) -> list[Row]:
    """Run what is missing of a study, and write its rows.

    Killed at any moment and called again, it runs only the cells that have no result, and leaves the same rows. With
    another seed or method in the study only the new cells are run. Cells that failed are tried once more.

    Args:
        study: as `rmlora.compare.reading.read_study` returns it.
        workers: cells run side by side; None takes one per GPU, or one per two cores, or what fits on the cluster; 0
            works in this process.
        threads: of torch, per worker; None shares the cores. The last digits of a result can depend on it.
        backend: "local" for worker processes, "ray" for tasks on a Ray cluster, "slurm" for batch jobs.
        gpus: per cell, on Ray and Slurm; see `rmlora.compare.backends.Place`, also for what None means there.
        retries: how often a cell whose process died is tried again.
        slurm: settings of Slurm jobs instead of the study's.
        console: where to say what happens; None says nothing.

    Returns:
        The rows of all finished cells, as in rows.jsonl.

    Raises:
        ConfigError: the backend's package is missing, or an option does not suit it.
        StateError: a model or data file has changed since the study began.
        DiskFullError: there is no space left.
        RmloraError: the folder cannot be written, or some cells failed; all others are finished then.
    """
    console = console or Console(quiet=True)
    store = Store(study.folder)
    place = Place(backend, workers, threads, gpus, retries, study.slurm if slurm is None else slurm)
    place.check()
    agenda = _begin(study, store, console)
    at_once, run = prepare(place, study, store, lambda line: say(console, line))
    shown = ShowGrid(console, at_once)
    restore = quieten()
    try:
        with shown:
            run(_Follow(shown))
    finally:
        restore()
    return _end(agenda.look(), console)


class _Follow:
    """Write the rows each time a cell is finished, and show it."""

    def __init__(self, shown: ShowGrid) -> None:
        self.shown = shown
        self.done = -1

    def __call__(self, agenda: Agenda) -> None:
        done = len(agenda.having("done"))
        if done != self.done:
            self.done = done
            write_rows(agenda)
            write_choices(agenda)
        self.shown(agenda)


def _begin(study: Study, store: Store, console: Console) -> Agenda:
    """Make the folder ready, say what will be done, and open again what failed or is damaged."""
    check_writable(store.path)
    agenda = Agenda(study, store)
    note_inputs(study, store)
    write_text(store.study, dump_study(study))
    show_budget(study, agenda, console)
    for line in tidy(study, agenda.look()):
        say(console, line)
    agenda.states.clear()
    agenda.results.clear()
    agenda.look()
    done = len(agenda.having("done"))
    total = len(agenda.cells) + agenda.waiting
    say(console, f"{done} of {total} cells are finished; {total - done} to run into {store.path}")
    return agenda


def tidy(study: Study, agenda: Agenda) -> list[str]:
    """Open failed cells again, finish what was cut off between two cells, and say what is damaged.

    Args:
        study: to be run.
        agenda: of it, having looked.

    Returns:
        A line for each cell that has to be run again although something of it is there.
    """
    lines, store = [], agenda.store
    for cell in agenda.cells:
        folder = store.folder(cell)
        if store.is_held(cell) or not folder.is_dir():
            continue
        if agenda.states[cell.id] == "failed":
            lines.append(f"{cell.title}: failed before ({store.reason(cell)}); it is tried again")
            store.failure(cell).unlink(missing_ok=True)
        elif agenda.states[cell.id] == "done" and not (folder / "files.json").is_file():
            store.finish(cell, study.keep_weights)
        elif agenda.states[cell.id] == "open" and (folder / "result.json").exists():
            lines.append(f"{cell.title}: {folder}: {store.damage(cell)}; it is run again")
    return lines


def dump_study(study: Study) -> str:
    """Write a study as YAML, such that `read_study` gives the same study in the same folder."""
    plain: dict[str, Any] = study.model_dump(mode="json", exclude_unset=True)
    return str(yaml.safe_dump(plain | {"output": str(study.folder)}, sort_keys=False, allow_unicode=True))


def _end(agenda: Agenda, console: Console) -> list[Row]:
    """Write rows and choices; say what is to be said of cells without result, and of parameters at inference."""
    rows = write_rows(agenda)
    write_choices(agenda)
    for cell in agenda.having("diverged"):
        say(console, cell_line(cell, agenda))
    order = [contender.label for contender in contenders(agenda.study)]
    for line in budget_lines(sorted(rows, key=lambda row: order.index(row["label"]))):
        say(console, line)
    failed = agenda.having("failed")
    if failed:
        others = ", all others are finished" if rows else ""
        raise RmloraError(
            f"{len(failed)} of {len(agenda.cells)} cells failed{others}; first: "
            f"{cell_line(failed[0], agenda)}; start again to try them again"
        )
    say(console, f"Done: {len(rows)} rows in {agenda.store.rows}")
    return rows
