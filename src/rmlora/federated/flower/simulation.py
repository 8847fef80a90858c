"""Flower's simulation engine: a process for each client at work, on this machine, by Ray."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, current_thread, main_thread
from typing import Any

import torch

from rmlora.errors import ConfigError, RmloraError
from rmlora.federated.exchange import reason_of
from rmlora.federated.progress import Progress
from rmlora.federated.rounds import run_rounds
from rmlora.federated.site import Site
from rmlora.run.folder import RunFolder


def run_simulated(site: Site, place: RunFolder, tell: Callable[[str], None]) -> Progress:
    """Run all rounds that are missing; clients are Ray actors, each with a model of its own.

    Args:
        site: the server's, which stays in this process.
        place: the run's folder, open.
        tell: told in lines what happens.

    Raises:
        RmloraError: as `run_rounds`, or the engine ended by itself.
    """
    import ray
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    from rmlora.federated.flower.client_app import app
    from rmlora.federated.flower.grid import GridExchange

    if ray.is_initialized():
        raise ConfigError(
            "federated.runtime=simulation starts Ray itself, and this process uses it already; take runtime=local, "
            "which gives the same numbers"
        )
    ended: list[Progress | BaseException] = []
    stop = Event()
    server = ServerApp()

    @server.main()  # type: ignore[untyped-decorator,unused-ignore]
    def main(grid: Any, context: Any) -> None:
        try:
            ended.append(run_rounds(site, place, GridExchange(grid, site, stop.is_set), tell))
        except BaseException as error:  # raised below, where somebody can read it
            ended.append(error)

    with _quiet(), _set_at_interrupt(stop):
        try:
            run_simulation(server, app, site.config.federated.clients, backend_config=_resources(site))
        except RuntimeError as error:  # Flower's, for whatever happened below it
            raise RmloraError(f"Flower's simulation engine failed: {_root(error)}; runtime=local needs none") from error
    if not ended:
        raise RmloraError("Flower's simulation engine ended before its server did; runtime=local needs none")
    if isinstance(ended[0], BaseException):
        raise ended[0]
    return ended[0]


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return reason_of(error)


def _resources(site: Site) -> Any:
    """Say how many clients work side by side: as many as there are cores for, unless the configuration says."""
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    workers = site.config.federated.workers or max(1, cores // threads)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "init_args": {
            "address": "local",  # a cluster that runs on this machine is somebody else's
            "num_cpus": workers * threads,
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": "ERROR",
        },
        "client_resources": {"num_cpus": threads, "num_gpus": gpus / workers},
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Flower's log say nothing: what happened to which client is said by the rounds."""
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def _set_at_interrupt(stop: Event) -> Iterator[None]:
    """Let Ctrl-C end the server's thread too: the engine waits for it before it lets the interrupt through."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: Any) -> None:
        stop.set()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
