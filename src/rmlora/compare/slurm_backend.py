"""The backend of Slurm, through submitit: every cell is a batch job; the files of the study stay the truth.

submitit hands a job its order, a name and a few paths, through pickle files of its own in `slurm/`; nothing else is
pickled, and rmlora itself opens none: a job writes how it ended as JSON.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmlora.compare import claims
from rmlora.compare.dispatch import Dispatcher
from rmlora.compare.probe import Probe, leave_probe, remove_probe
from rmlora.compare.remote import Ended, Order, read_ended, record_of, run_job
from rmlora.compare.slurm_settings import SlurmSettings, minutes_of
from rmlora.compare.store import Store
from rmlora.compare.study import Study
from rmlora.errors import ConfigError

# States of jobs that will do no more; of submitit's local executor the last two.
_OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"}
_OVER |= {"PREEMPTED", "REVOKED", "FINISHED", "INTERRUPTED", "NO PROCESS AND NO RESULT"}
_ASK_SECONDS = 30.0  # between two questions to sacct, about all jobs at once
_LATE_SECONDS = 15.0  # how late a network file system may show what a job wrote last
_CANCEL_SECONDS = 45.0  # Slurm kills 30 seconds after it has told a job to go


@dataclass
class SlurmPool:
    """Slurm, or submitit's stand-in for it on this machine.

    Attributes:
        executor: of submitit.
        store: the folder of the study.
        order: what a job is told, of a cell and a name.
        probe: a file that jobs look for before they begin.
        is_local: whether jobs are processes of this machine.
    """

    executor: Any
    store: Store
    order: Callable[[str, str], Order]
    probe: Probe
    is_local: bool
    handles: list[Any] = field(default_factory=list)
    cells: dict[Any, tuple[str, str]] = field(default_factory=dict)
    over_since: dict[Any, float] = field(default_factory=dict)
    asked: float = 0.0

    def submit(self, cell: str, job: str) -> Any:
        """Submit a job.

        Raises:
            ConfigError: sbatch refuses it.
        """
        try:
            with _out_of_reach_of_ctrl_c() if self.is_local else contextlib.nullcontext():
                handle = self.executor.submit(run_job, self.order(cell, job))
        except RuntimeError as error:  # submitit's errors are of this kind
            lines = [line.strip() for line in str(error).splitlines() if "error" in line.lower()]
            said = (lines or [" ".join(str(error).split())])[-1]
            raise ConfigError(f"sbatch refused a job: {said[:300]}") from error
        self.cells[handle] = cell, job
        self.handles.append(handle)
        return handle

    def ended(self, jobs: Sequence[Any], seconds: float) -> list[tuple[Any, Ended]]:
        """Look which jobs have written how they ended, or will not any more."""
        time.sleep(seconds)
        self._ask(jobs, _ASK_SECONDS)
        found = []
        for handle in jobs:
            ended = self._end_of(handle)
            if ended is not None:
                found.append((handle, ended))
                record_of(self.store, self.cells.pop(handle)[1]).unlink(missing_ok=True)
        return found

    def cancel(self, jobs: Sequence[Any]) -> None:
        """Cancel jobs, and wait for a while until they have ended."""
        for handle in jobs:
            if self.is_local:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(handle.job_id), signal.SIGTERM)
            else:
                handle.cancel(check=False)
        left, deadline = list(jobs), time.monotonic() + _CANCEL_SECONDS
        while left and time.monotonic() < deadline:
            time.sleep(0.5)
            self._ask(left, _ASK_SECONDS / 10)
            left = [handle for handle in left if not self._has_gone(handle)]

    def close(self) -> None:
        """Remove the probe, and what submitit leaves beside its logs."""
        remove_probe(self.probe)
        for handle in self.handles:
            for path in (handle.paths.submitted_pickle, handle.paths.result_pickle):
                Path(path).unlink(missing_ok=True)

    def _ask(self, jobs: Sequence[Any], every: float) -> None:
        if jobs and not self.is_local and time.monotonic() - self.asked > every:
            self.asked = time.monotonic()
            jobs[0].watcher.update()

    def _state(self, handle: Any) -> str:
        return str(handle.state if self.is_local else handle.watcher.get_state(handle.job_id, mode="cache"))

    def _has_gone(self, handle: Any) -> bool:
        """Whether a cancelled job has: one that Slurm cannot tell of has, unless it was seen to take its cell."""
        cell, job = self.cells[handle]
        state = self._state(handle)
        if _is_over(state) or record_of(self.store, job).exists():
            return True
        owner = claims.read_claim(self._claim(cell))
        return state == "UNKNOWN" and (owner is None or owner.job != job)

    def _end_of(self, handle: Any) -> Ended | None:
        cell, job = self.cells[handle]
        state = self._state(handle)
        is_over = _is_over(state) or (state == "UNKNOWN" and self._is_silent(cell, job))
        ended = read_ended(record_of(self.store, job))
        if ended is not None or not is_over:
            return ended
        since = self.over_since.setdefault(handle, time.monotonic())
        if not self.is_local and time.monotonic() - since < _LATE_SECONDS:
            return None
        return Ended(had_cell=False, died=self._last_words(handle, state))

    def _is_silent(self, cell: str, job: str) -> bool:
        """Whether a job that Slurm cannot tell of, without accounting, took its cell and fell silent."""
        owner = claims.read_claim(self._claim(cell))
        return owner is not None and owner.job == job and not claims.is_live(self._claim(cell))

    def _claim(self, cell: str) -> Path:
        return self.store.path / "cells" / cell / "claim.json"

    def _last_words(self, handle: Any, state: str) -> str:
        known = f"Slurm job {handle.job_id}, {state.lower()}"
        log = Path(handle.paths.stderr)
        if not log.is_file():
            return f'{known}, left no log; does its node see "{self.store.path.resolve()}"?'
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return f"{known}: {lines[-1].strip()[:200]} (log: {log})" if lines else f"{known} (log: {log})"


@contextlib.contextmanager
def _out_of_reach_of_ctrl_c() -> Iterator[None]:
    """Start processes that a terminal's Ctrl-C does not end in the middle of a line: the coordinator cancels them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_over(state: str) -> bool:
    """Whether a job in this state will do no more; sacct may add by whom, as in `CANCELLED by 1000`."""
    return state in _OVER or state.split(" ")[0].rstrip("+") in _OVER


def check_slurm(settings: SlurmSettings) -> None:
    """Refuse a machine that jobs cannot be submitted from.

    Raises:
        ConfigError: submitit is not installed, or there is no Slurm here.
    """
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ConfigError("--backend slurm needs submitit: pip install 'rmlora[slurm]'") from error
    if settings.executor == "slurm" and shutil.which("srun") is None:
        raise ConfigError(
            "--backend slurm: there is no srun here; start on a login node, or try it with --slurm executor=local"
        )


def open_executor(settings: SlurmSettings, name: str, folder: Path, threads: int, gpus: int) -> Any:
    """Make a submitit executor whose jobs have what one cell needs.

    Args:
        settings: of the jobs.
        name: of the study.
        folder: of submitit's own files; it is made.
        threads: CPUs of a job.
        gpus: of a job.

    Raises:
        ConfigError: submitit is not installed, or there is no Slurm here.
    """
    check_slurm(settings)
    import submitit

    executor = submitit.AutoExecutor(folder=folder, cluster=settings.executor)
    more = {**settings.options, "no-requeue": True}  # a job that ended early is submitted anew, and counted
    slurm = {"partition": settings.partition, "account": settings.account, "qos": settings.qos, "mem": settings.mem}
    executor.update_parameters(
        name=f"rmlora-{name}",
        timeout_min=max(1, math.ceil(minutes_of(settings.time))),
        cpus_per_task=threads,
        gpus_per_node=gpus or None,
        slurm_additional_parameters=more,
        **{f"slurm_{key}": value for key, value in slurm.items()},
        **({f"{settings.executor}_setup": settings.setup} if settings.setup else {}),
    )
    return executor


def dispatcher(
    study: Study, store: Store, settings: SlurmSettings, threads: int, gpus: int, workers: int, retries: int
) -> Dispatcher:
    """Make ready what runs a study on Slurm; see `Dispatcher`.

    Args:
        study: as written in the folder.
        store: its folder.
        settings: of the jobs.
        threads: CPUs of a job.
        gpus: of a job.
        workers: jobs queued or running at a time.
        retries: how often a cell whose job died, ran out of time or was preempted is submitted again.

    Raises:
        ConfigError: submitit is not installed, or there is no Slurm here.
    """
    executor = open_executor(settings, study.name, store.path.resolve() / "slurm", threads, gpus)
    folder, directory = str(store.path.resolve()), os.getcwd()
    probe = leave_probe(study, store)

    def order(cell: str, job: str) -> Order:
        return Order(folder, directory, cell, threads, job, probe)

    pool = SlurmPool(executor, store, order, probe, settings.executor == "local")
    return Dispatcher(study, store, pool, max(1, workers), retries)
