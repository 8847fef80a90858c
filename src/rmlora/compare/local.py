"""The backend of one machine: worker processes that share the cores, replaced when one of them dies."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from rmlora.compare import claims
from rmlora.compare.agenda import Agenda
from rmlora.compare.cells import Cell
from rmlora.compare.store import Store
from rmlora.compare.study import Study
from rmlora.compare.work import LOST, POLL_SECONDS, work
from rmlora.compare.worker import DISK_FULL
from rmlora.errors import RmloraError
from rmlora.run.faults import DiskFullError

Seen = Callable[[Agenda], None]


@dataclass(frozen=True)
class Worker:
    """A worker process and what it says before it ends."""

    process: subprocess.Popen[bytes]
    said: IO[bytes]

    def last_line(self) -> str:
        """Return the last line it wrote."""
        self.said.seek(0)
        lines = self.said.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.returncode}"


def run_local(study: Study, store: Store, workers: int, threads: int, seen: Seen, retries: int = 1) -> None:
    """Run what is left of a study on this machine.

    Args:
        study: as written in the folder.
        store: its folder.
        workers: number of processes; 0 works in this one, which a debugger can follow.
        threads: of torch, in each process.
        seen: called with the agenda each time it has been read.
        retries: how often a cell in which a worker died is tried again: a worker may have been killed for no fault of
            the cell.

    Raises:
        DiskFullError: there is no space left.
        RmloraError: workers cannot even start.
    """
    if workers == 0:
        work(study, store, seen)
        return
    agenda, deaths = Agenda(study, store).look(), Counter[str]()
    team: list[Worker] = []
    try:
        while agenda.having("open") or team:
            seen(agenda)
            team = [worker for worker in team if not _has_ended(worker, agenda, deaths, retries)]
            wanted = min(workers, len(agenda.having("open")) + agenda.waiting)
            free = sorted(set(range(workers)) - set(range(len(team))))
            team += [_start(store, threads, number) for number in free[: max(0, wanted - len(team))]]
            time.sleep(POLL_SECONDS)
            agenda.look()
        seen(agenda)
    finally:
        for worker in team:
            worker.process.terminate()
        for worker in team:
            worker.process.wait()


def _start(store: Store, threads: int, number: int) -> Worker:
    said = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the worker)
    command = [sys.executable, "-m", "rmlora.compare.worker", str(store.path), str(threads), str(os.getpid())]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"} | _device(number)
    process = subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment
    )
    return Worker(process, said)


def _device(number: int) -> dict[str, str]:
    """Give each worker one GPU, in turn; nothing where there is at most one."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
    return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if len(devices) > 1 else {}


def _has_ended(worker: Worker, agenda: Agenda, deaths: Counter[str], retries: int) -> bool:
    """Look after one worker; what it died of is noted with the cell it had."""
    code = worker.process.poll()
    if code is None:
        return False
    if code in (0, LOST):
        return True
    if code == DISK_FULL:
        raise DiskFullError(worker.last_line())
    cell = _held_by(worker.process.pid, agenda)
    key = "" if cell is None else cell.id
    deaths[key] += 1
    how = f"signal {-code}" if code < 0 else worker.last_line()
    if deaths[key] > retries:
        if cell is None:
            raise RmloraError(f"the workers end at once: {how}")
        agenda.store.claim(cell).unlink(missing_ok=True)
        agenda.store.fail(cell, f"the process that ran it died {_times(deaths[key])} ({how}); was it out of memory?")
    return True


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _held_by(pid: int, agenda: Agenda) -> Cell | None:
    for cell in agenda.having("open"):
        owner = claims.read_claim(agenda.store.claim(cell))
        if owner is not None and owner.is_here and owner.pid == pid:
            return cell
    return None
