"""Where the cells of a study are run: on this machine, on a Ray cluster, by Slurm."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from rmlora.compare.local import Seen, run_local
from rmlora.compare.slurm_settings import SlurmSettings
from rmlora.compare.store import Store
from rmlora.compare.study import Study
from rmlora.errors import ConfigError

Backend = Literal["local", "ray", "slurm"]

_RETRIES = {"local": 1, "ray": 3, "slurm": 3}  # on a cluster machines are lost and jobs preempted
_SLURM_JOBS = 16


@dataclass(frozen=True)
class Place:
    """Where cells are run, and with what.

    Attributes:
        backend: "local" for worker processes, "ray" for tasks on a Ray cluster, "slurm" for batch jobs.
        workers: cells run side by side; None takes what fits, on Slurm 16 jobs. 0 works in this process (local only).
        threads: of torch, per cell; None shares the cores of this machine, on Slurm it is 1.
        gpus: per cell; on Ray less than one is a share of one. None shares the GPUs there are, on Slurm it is none.
        retries: how often a cell whose process died is tried again; None is 1 on this machine and 3 elsewhere.
        slurm: settings of Slurm jobs.
    """

    backend: Backend = "local"
    workers: int | None = None
    threads: int | None = None
    gpus: float | None = None
    retries: int | None = None
    slurm: SlurmSettings = field(default_factory=SlurmSettings)

    def check(self) -> None:
        """Refuse what the backend cannot do, before any work.

        Raises:
            ConfigError: a package is missing, or an option does not suit the backend.
        """
        gpus, name = self.gpus, self.backend
        if gpus is not None and gpus < 0:
            raise ConfigError(f"--gpus: expected a number of GPUs per cell, got {gpus:g}")
        if name == "local" and gpus is not None:
            raise ConfigError("--gpus is for --backend ray and slurm; local workers take the GPUs in turn, one each")
        if gpus is not None and gpus % 1 and (name == "slurm" or gpus > 1):
            what = "Slurm gives whole GPUs" if name == "slurm" else "Ray divides single GPUs only"
            raise ConfigError(f"--gpus {gpus:g}: {what}; give a whole number{'' if name == 'slurm' else ' or a share'}")
        if name != "local" and self.workers == 0:
            raise ConfigError(f"--workers 0 works in this process; it does not go with --backend {name}")
        if name == "ray":
            from rmlora.compare.ray_backend import check_ray

            check_ray()
        elif name == "slurm":
            from rmlora.compare.slurm_backend import check_slurm

            check_slurm(self.slurm)


def default_workers() -> int:
    """Return how many cells to run side by side on this machine.

    Example:
        >>> default_workers() >= 1
        True
    """
    import torch

    return torch.cuda.device_count() or max(1, (os.cpu_count() or 1) // 2)


def prepare(place: Place, study: Study, store: Store, say: Callable[[str], None]) -> tuple[int, Callable[[Seen], None]]:
    """Make a backend ready, so that only its work is left.

    Args:
        place: checked.
        study: as written in the folder.
        store: its folder.
        say: called with a line about jobs that had to be cancelled.

    Returns:
        How many cells it will run side by side, and what runs them.

    Raises:
        RmloraError: a machine does not see the study's folder, or has no room for a cell.
    """
    retries = _RETRIES[place.backend] if place.retries is None else place.retries
    if place.backend == "slurm":
        return _slurm(place, study, store, retries, say)
    here = default_workers() if place.workers is None else place.workers
    threads = place.threads or max(1, (os.cpu_count() or 1) // max(1, here))
    if place.backend == "ray":
        return _ray(place, study, store, threads, here, retries, say)
    return here, lambda seen: run_local(study, store, here, threads, seen, retries)


def _slurm(
    place: Place, study: Study, store: Store, retries: int, say: Callable[[str], None]
) -> tuple[int, Callable[[Seen], None]]:
    from rmlora.compare.slurm_backend import dispatcher

    workers = _SLURM_JOBS if place.workers is None else place.workers
    ready = dispatcher(study, store, place.slurm, place.threads or 1, int(place.gpus or 0), workers, retries)
    return workers, replace(ready, say=say).run


def _ray(
    place: Place, study: Study, store: Store, threads: int, here: int, retries: int, say: Callable[[str], None]
) -> tuple[int, Callable[[Seen], None]]:
    from rmlora.compare.ray_backend import check_fit, connect, dispatcher

    cluster = connect(here, threads)
    if place.threads is None:
        threads = max(1, min(threads, int(max(cluster.cpus, default=1.0))))
    share = 1.0 if place.workers is None else min(1.0, sum(cluster.gpus) / max(1, place.workers))
    gpus = place.gpus if place.gpus is not None else (share if sum(cluster.gpus) else 0.0)
    check_fit(cluster, threads, gpus)
    workers = max(1, cluster.workers(threads, gpus)) if place.workers is None else place.workers
    ready = dispatcher(study, store, cluster, threads, gpus, workers, retries)
    return workers, replace(ready, say=say).run
