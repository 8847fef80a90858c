"""What runs on the other machine: one cell, and a word about how it ended."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rmlora.compare.agenda import Agenda
from rmlora.compare.probe import Probe, look_for
from rmlora.compare.store import Store, read_record
from rmlora.compare.work import run_cell
from rmlora.files import write_text
from rmlora.run.faults import DiskFullError
from rmlora.run.sources import KeptSources

_KEPT: dict[str, KeptSources] = {}


@dataclass(frozen=True)
class Ended:
    """How a job ended; what came of its cell is in the cell's files.

    Attributes:
        had_cell: False if somebody else had it, or the job never came so far.
        died: what ended it before its cell had; None if nothing did.
        full: what to say of a full disk.
        unseen: what the machine does not see of the shared file system.
    """

    had_cell: bool = True
    died: str | None = None
    full: str | None = None
    unseen: str | None = None


@dataclass(frozen=True)
class Order:
    """What a job is told.

    Attributes:
        folder: of the study, as a full path.
        directory: from which relative paths are meant.
        cell: id of the cell.
        threads: of torch.
        job: the job's name, in claims.
        probe: to be looked for first, if any.
    """

    folder: str
    directory: str
    cell: str
    threads: int
    job: str
    probe: Probe | None = None


class Stopped(BaseException):
    """A signal said that this job has to go; no cell's failure, so nothing that catches exceptions may catch it."""


def run_order(order: Order) -> Ended:
    """Run one cell in a process that may keep data and model for its next one.

    Args:
        order: which, and where.
    """
    import torch

    from rmlora.compare.reading import read_study

    if order.probe is not None:
        unseen = look_for(order.probe)
        if unseen is not None:
            return Ended(had_cell=False, unseen=unseen)
    os.chdir(order.directory)
    torch.set_num_threads(order.threads)
    store = Store(Path(order.folder))
    study = read_study(store.study)
    cell = next((cell for cell in Agenda(study, store).look().cells if cell.id == order.cell), None)
    if cell is None:  # the study has been changed since
        return Ended(had_cell=False)
    try:
        return Ended(run_cell(study, store, cell, _KEPT.setdefault(order.folder, KeptSources()), order.job))
    except DiskFullError as error:
        return Ended(full=str(error))


def run_job(order: Order) -> None:
    """Run one cell as a batch job, which is told by a signal when its time is up, and write down how it ended.

    The cell is given back at the signal, so that the next job goes on from its last epoch at once.

    Args:
        order: which, and where.
    """
    for number in (signal.SIGTERM, signal.SIGUSR2):  # Slurm's before it kills; submitit's before the time limit
        signal.signal(number, _stop)
    record = record_of(Store(Path(order.folder)), order.job)
    if record.exists():  # the batch system has started a job again that had ended
        return
    try:
        ended = run_order(order)
    except (Stopped, KeyboardInterrupt) as error:
        ended = Ended(died=f"it was told to stop ({error or 'SIGINT'}), by its time limit or for another job")
    write_text(record, json.dumps(asdict(ended)) + "\n")


def record_of(store: Store, job: str) -> Path:
    """Where a batch job writes how it ended."""
    return store.jobs / f"{job}.json"


def read_ended(path: Path) -> Ended | None:
    """Return how a batch job ended; None as long as it has not said so."""
    told: dict[str, Any] | None = read_record(path)
    return None if told is None else Ended(**told)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(signal.Signals(number).name)
