"""The backend of many machines: every cell is a Ray task; the files of the study stay the truth.

The study's folder, its models and its data must be at the same paths on all machines.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rmlora.compare.agenda import Agenda
from rmlora.compare.cells import Cell
from rmlora.compare.local import Seen
from rmlora.compare.store import Store
from rmlora.compare.study import Study
from rmlora.compare.work import POLL_SECONDS, run_cell
from rmlora.errors import ConfigError
from rmlora.run.faults import DiskFullError
from rmlora.run.sources import KeptSources

_DEATHS = 2
_KEPT: dict[str, KeptSources] = {}


def run_ray(study: Study, store: Store, workers: int, threads: int, seen: Seen) -> None:
    """Run what is left of a study as Ray tasks, on the cluster of RAY_ADDRESS or on one started here.

    Args:
        study: as written in the folder.
        store: its folder.
        workers: tasks side by side; on GPUs they share them evenly, so 4 workers on 2 GPUs take half a GPU each.
        threads: of torch in each task, and CPUs each task asks for.
        seen: called with the agenda each time it has been read.

    Raises:
        ConfigError: ray is not installed.
        DiskFullError: there is no space left.
    """
    ray = _connect(workers, threads)
    gpus = float(ray.cluster_resources().get("GPU", 0))
    share = min(1.0, gpus / max(1, workers))
    task = ray.remote(run_one).options(num_cpus=threads, num_gpus=share, max_retries=0)
    agenda, deaths = Agenda(study, store).look(), Counter[str]()
    running: dict[Any, Cell] = {}
    while agenda.having("open") or running:
        seen(agenda)
        asked = {cell.id for cell in running.values()}
        for cell in agenda.having("open"):
            if cell.id not in asked and len(running) < max(1, workers):
                running[task.remote(str(store.path.resolve()), os.getcwd(), cell.id, threads)] = cell
        finished, _ = ray.wait(list(running), timeout=POLL_SECONDS) if running else ([], [])
        for reference in finished:
            _collect(ray, reference, running.pop(reference), store, deaths)
        if not running:
            time.sleep(POLL_SECONDS)
        agenda.look()
    seen(agenda)


def run_one(folder: str, directory: str, cell_id: str, threads: int) -> str | None:
    """Run one cell in a Ray worker, which keeps data and model for its next one.

    Returns:
        Nothing, or what to say of a full disk: everything else is in the files.
    """
    import torch

    from rmlora.compare.reading import read_study

    os.chdir(directory)
    torch.set_num_threads(threads)
    store = Store(Path(folder))
    study = read_study(store.study)
    cell = next(cell for cell in Agenda(study, store).look().cells if cell.id == cell_id)
    try:
        run_cell(study, store, cell, _KEPT.setdefault(folder, KeptSources()))
    except DiskFullError as error:
        return str(error)
    return None


def _connect(workers: int, threads: int) -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--backend ray needs Ray: pip install 'rmlora[ray]'") from error
    if not ray.is_initialized():
        where: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": max(1, workers) * threads}
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **where)
    return ray


def _collect(ray: Any, reference: Any, cell: Cell, store: Store, deaths: Counter[str]) -> None:
    """Take a task's end; a cell whose process dies twice is given up."""
    try:
        full = ray.get(reference)
    except ray.exceptions.RayError as error:
        deaths[cell.id] += 1
        if deaths[cell.id] >= _DEATHS and store.state(cell) == "open":
            lines = str(error).strip().splitlines()
            store.fail(cell, f"its Ray task died twice: {lines[-1] if lines else type(error).__name__}")
        return
    if full is not None:
        raise DiskFullError(full)
