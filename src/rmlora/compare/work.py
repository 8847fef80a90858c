"""Working on a study: take a cell nobody has, run it, note what came of it, until none is left."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from rmlora.compare import claims
from rmlora.compare.agenda import Agenda
from rmlora.compare.cells import Cell
from rmlora.compare.store import Store
from rmlora.compare.study import Study
from rmlora.run.faults import disk_full
from rmlora.run.sources import KeptSources, Sources
from rmlora.scopes import run

POLL_SECONDS = 0.3
LOST = 4  # exit code of a process whose cell was taken over
_SAFE = "every finished cell is safe; make room and start again"


def work(study: Study, store: Store, seen: Callable[[Agenda], None] = lambda agenda: None) -> None:
    """Run the cells of a study in this process until there is none that could be run.

    Cells that another process holds are waited for: what comes after them may depend on them.

    Args:
        study: what to run.
        store: its folder; other processes may work on it too.
        seen: called with the agenda each time it has been read.

    Raises:
        DiskFullError: there is no space left.
    """
    agenda, sources = Agenda(study, store), KeptSources()
    while True:
        seen(agenda.look())
        cells = agenda.having("open")
        if not cells:
            return
        if not any(run_cell(study, store, cell, sources) for cell in cells):
            time.sleep(POLL_SECONDS)


def run_cell(study: Study, store: Store, cell: Cell, sources: Sources, job: str = "") -> bool:
    """Run one cell, if nobody else does or did.

    If somebody else takes the cell over meanwhile, since this process gave no sign of life for long, it ends at once.

    Args:
        study: of the cell.
        store: its folder.
        cell: to be run.
        sources: where examples and model come from.
        job: what a coordinator calls this process.

    Returns:
        Whether it was run, with whatever outcome.

    Raises:
        DiskFullError: there is no space left; the cell stays open.
    """
    claim = store.claim(cell)
    if not claims.take(claim, job):
        return False
    try:
        if store.state(cell) != "open":
            return False
        folder = store.prepare(cell)
        beating = claims.renewed(claim, lambda: _give_way(cell))
        with store.log(cell).open("a", encoding="utf-8", buffering=1) as log, _said_to(log), beating:
            _run(study, store, cell, folder, sources, log)
        return True
    except OSError as error:
        raise disk_full(error, store.path, _SAFE) or error from error
    finally:
        with contextlib.suppress(OSError):
            claims.release(claim)


def _run(study: Study, store: Store, cell: Cell, folder: Path, sources: Sources, log: IO[str]) -> None:
    log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {cell.title}\n")
    try:
        train_cell(cell, folder, sources, Console(file=log, width=120, color_system=None))
        store.finish(cell, study.keep_weights)
    except Exception as error:
        full = disk_full(error, store.path, _SAFE)
        if full is not None:
            raise full from error
        log.write(traceback.format_exc())
        store.fail(cell, error)


def train_cell(cell: Cell, folder: Path, sources: Sources, console: Console) -> dict[str, Any]:
    """Train what a cell says into its folder.

    Args:
        cell: to be run.
        folder: made ready by `Store.prepare`.
        sources: where examples and model come from.
        console: where the run speaks.
    """
    config = cell.config.model_copy(update={"output": str(folder)})
    return run(config, resume=True, console=console, sources=sources)


def end_with(parent: int) -> None:
    """End this process when its parent is no more, so that a killed study leaves nobody at work."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _give_way(cell: Cell) -> None:
    """End this process: whoever has taken the cell over writes to the same files."""
    if sys.__stderr__ is not None:
        sys.__stderr__.write(f"{cell.title}: taken over by another process, as this one was silent for long; it ends\n")
        sys.__stderr__.flush()
    os._exit(LOST)


@contextlib.contextmanager
def _said_to(log: IO[str]) -> Iterator[None]:
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield
