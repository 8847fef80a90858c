"""Clients run by Flower: simulated on one machine, or over a network; the numbers are those of one process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from importlib.util import find_spec

from rmlora.errors import ConfigError
from rmlora.federated.progress import Progress
from rmlora.federated.site import Site
from rmlora.run.folder import RunFolder
from rmlora.sections import FederatedSettings

_CONNECT_SECONDS = 10

_SILENT = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
"""Flower and Ray report each start to their makers unless told otherwise before they are imported."""


def choose_flower(settings: FederatedSettings) -> Callable[[Site, RunFolder, Callable[[str], None]], Progress]:
    """Return what runs all rounds of a run by one of Flower's runtimes.

    Args:
        settings: `runtime`, simulation or network, and `superlink`.

    Raises:
        ConfigError: Flower, or Ray for the simulation, is not installed; or no SuperLink listens.
    """
    stay_silent()
    runtime = settings.runtime
    for package in ("flwr", "ray") if runtime == "simulation" else ("flwr",):
        if not _is_installed(package):
            raise ConfigError(
                f"federated.runtime={runtime} needs {package}: pip install 'rmlora[federated]'; runtime=local needs "
                "neither and gives the same numbers"
            )
    if runtime == "network":
        _try_superlink(settings.superlink)
        from rmlora.federated.flower.network import run_over_network

        return run_over_network
    from rmlora.federated.flower.simulation import run_simulated

    return run_simulated


def stay_silent() -> None:
    """Keep Flower and Ray from reporting their use, here and in processes started from here, unless the user set it."""
    for name, value in _SILENT.items():
        os.environ.setdefault(name, value)


def _try_superlink(superlink: str) -> None:
    """Refuse an address at which nobody listens; a name in Flower's own configuration is tried when the run begins."""
    host, _, port = superlink.rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or "no answer"
        raise ConfigError(
            f'no SuperLink answers at federated.superlink="{superlink}": {reason}; start one: '
            f"flower-superlink --insecure --port {port}"
        ) from error


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # named in sys.modules as not to be had
        return False
