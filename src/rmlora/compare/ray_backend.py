"""The backend of many machines: every cell is a Ray task; the files of the study stay the truth.

The study's folder, its models and its data must be at the same paths on all machines.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rmlora.compare.dispatch import Dispatcher
from rmlora.compare.probe import Probe, has_answered, leave_probe, look_for, remove_probe
from rmlora.compare.remote import Ended, Order, run_order
from rmlora.compare.store import Store
from rmlora.compare.study import Study
from rmlora.errors import ConfigError, RmloraError

_PROBE_SECONDS = 300
_CANCEL_SECONDS = 10
_CONNECT_SECONDS = 10


@dataclass(frozen=True)
class Cluster:
    """What a Ray cluster has, as far as cells need it.

    Attributes:
        ray: the library, connected.
        cpus: of each machine.
        gpus: of each machine, in the same order.
    """

    ray: Any
    cpus: tuple[float, ...]
    gpus: tuple[float, ...]

    def workers(self, threads: int, gpus: float) -> int:
        """Return how many cells fit side by side."""
        pairs = zip(self.cpus, self.gpus, strict=True)
        return sum(int(min(c / threads, g / gpus if gpus else c) + 1e-6) for c, g in pairs)


@dataclass(frozen=True)
class RayPool:
    """A Ray cluster that runs cells.

    Attributes:
        ray: the library, connected.
        task: the remote function with its resources.
        order: what every task is told, but for cell and job.
    """

    ray: Any
    task: Any
    order: Callable[[str, str], Order]

    def submit(self, cell: str, job: str) -> Any:
        """Start a task."""
        return self.task.remote(self.order(cell, job))

    def ended(self, jobs: Sequence[Any], seconds: float) -> list[tuple[Any, Ended]]:
        """Wait for a task to end."""
        if not jobs:
            time.sleep(seconds)
            return []
        finished, _ = self.ray.wait(list(jobs), timeout=seconds)
        return [(reference, self._end_of(reference)) for reference in finished]

    def cancel(self, jobs: Sequence[Any]) -> None:
        """Kill the tasks, and wait for a while until they are gone."""
        for reference in jobs:
            self.ray.cancel(reference, force=True)
        self.ray.wait(list(jobs), num_returns=len(jobs), timeout=_CANCEL_SECONDS)

    def close(self) -> None:
        """Nothing is left behind."""

    def _end_of(self, reference: Any) -> Ended:
        try:
            ended: Ended = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
            is_own = isinstance(error, self.ray.exceptions.RayTaskError)  # its last line is Python's, others' the first
            said = (lines[-1] if is_own else lines[0]) if lines else ""
            return Ended(had_cell=False, died=f"{type(error).__name__}: {said}"[:300])
        return ended


def connect(workers: int, threads: int) -> Cluster:
    """Connect to the cluster of RAY_ADDRESS, or start one here.

    Args:
        workers: cells side by side on a cluster that is started here.
        threads: CPUs each of them takes.

    Raises:
        ConfigError: ray is not installed, or no cluster answers.
    """
    ray = import_ray()
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        where: dict[str, Any] = {} if address else {"num_cpus": max(1, workers) * threads}
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **where)
        except (ConnectionError, ValueError, RuntimeError) as error:
            if not address:
                raise
            said = " ".join(str(error).split())[:200]
            raise ConfigError(f'no Ray cluster answers at RAY_ADDRESS="{address}": {said}') from error
    living = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Cluster(ray, *(tuple(float(has.get(kind, 0)) for has in living) for kind in ("CPU", "GPU")))


def import_ray() -> Any:
    """Import Ray.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--backend ray needs Ray: pip install 'rmlora[ray]'") from error
    return ray


def check_ray() -> None:
    """Refuse a machine that cells cannot be given to Ray from.

    Raises:
        ConfigError: ray is not installed, or nobody listens at RAY_ADDRESS, which Ray would be minutes in finding out.
    """
    import_ray()
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f'no Ray cluster answers at RAY_ADDRESS="{address}": {reason}') from error


def check_fit(cluster: Cluster, threads: int, gpus: float) -> None:
    """Refuse cells that no machine of the cluster has room for, as they would wait for ever.

    Args:
        cluster: as it is now.
        threads: CPUs of a cell.
        gpus: of a cell; less than one is a share of one.

    Raises:
        ConfigError: no machine has as many.
    """
    if cluster.workers(threads, gpus) > 0:
        return
    most = max(zip(cluster.gpus, cluster.cpus, strict=True), default=(0.0, 0.0))
    raise ConfigError(
        f"no machine of the Ray cluster has {threads} CPUs and {gpus:g} GPUs for a cell (the largest: {most[1]:g} and "
        f"{most[0]:g}); give --threads or --gpus"
    )


def dispatcher(
    study: Study, store: Store, cluster: Cluster, threads: int, gpus: float, workers: int, retries: int
) -> Dispatcher:
    """Make ready what runs a study on a cluster; see `Dispatcher`.

    Args:
        study: as written in the folder.
        store: its folder.
        cluster: as `connect` returned it.
        threads: CPUs of a cell.
        gpus: of a cell.
        workers: cells side by side.
        retries: how often a cell whose task died is tried again.

    Raises:
        RmloraError: a machine does not see the study's folder, a model or a data file.
    """
    check_nodes(study, store, cluster.ray)
    task = cluster.ray.remote(run_order).options(num_cpus=threads, num_gpus=gpus, max_retries=0)
    folder, directory = str(store.path.resolve()), os.getcwd()
    pool = RayPool(cluster.ray, task, lambda cell, job: Order(folder, directory, cell, threads, job))
    return Dispatcher(study, store, pool, max(1, workers), retries)


def check_nodes(study: Study, store: Store, ray: Any) -> None:
    """Have every machine of the cluster look for a probe in the study's folder, and answer there.

    Raises:
        RmloraError: one does not see the folder, a model or a data file, or does not answer.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe, look = leave_probe(study, store), ray.remote(_look)
    try:
        asked = {}
        for node in ray.nodes():
            if node["Alive"]:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                asked[node["NodeManagerAddress"], node["NodeID"]] = look.options(
                    num_cpus=0, scheduling_strategy=there
                ).remote(probe)
        for (address, node), reference in asked.items():
            _hear(ray, address, node, reference, probe)
    finally:
        remove_probe(probe)


def _hear(ray: Any, address: str, node: str, reference: Any, probe: Probe) -> None:
    """Take a machine's answer; one that has left the cluster meanwhile owes none."""
    shared = "the study, its models and its data must be on a shared file system"
    try:
        host, unseen = ray.get(reference, timeout=_PROBE_SECONDS)
    except ray.exceptions.GetTimeoutError as error:
        raise RmloraError(f"machine {address} of the Ray cluster did not answer in {_PROBE_SECONDS} seconds") from error
    except ray.exceptions.RayError as error:
        if not any(known["NodeID"] == node and known["Alive"] for known in ray.nodes()):
            return
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise RmloraError(
            f"machine {address} of the Ray cluster cannot run rmlora: {lines[-1] if lines else type(error).__name__}"
        ) from error
    if unseen is not None:
        raise RmloraError(f"machine {address} of the Ray cluster: {unseen}: {shared}")
    if not has_answered(probe, host):
        raise RmloraError(f"what machine {address} of the Ray cluster writes is not seen here: {shared}")


def _look(probe: Probe) -> tuple[str, str | None]:
    return socket.gethostname(), look_for(probe)
