"""Clients run by Flower: simulated on one machine, or over a network; the numbers are those of one process."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal

from rmlora.errors import ConfigError
from rmlora.federated.progress import Progress
from rmlora.federated.site import Site
from rmlora.run.folder import RunFolder

_SILENT = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
"""Flower and Ray report each start to their makers unless told otherwise before they are imported."""


def choose_flower(
    runtime: Literal["simulation", "network"],
) -> Callable[[Site, RunFolder, Callable[[str], None]], Progress]:
    """Return what runs all rounds of a run by one of Flower's runtimes.

    Raises:
        ConfigError: Flower, or Ray for the simulation, is not installed, or Ray is in use by this process already.
    """
    stay_silent()
    for package in ("flwr", "ray") if runtime == "simulation" else ("flwr",):
        if not _is_installed(package):
            raise ConfigError(
                f"federated.runtime={runtime} needs {package}: pip install 'rmlora[federated]'; runtime=local needs "
                "neither and gives the same numbers"
            )
    if runtime == "network":
        from rmlora.federated.flower.network import run_over_network

        return run_over_network
    from rmlora.federated.flower.simulation import run_simulated

    return run_simulated


def stay_silent() -> None:
    """Keep Flower and Ray from reporting their use, here and in processes started from here, unless the user set it."""
    for name, value in _SILENT.items():
        os.environ.setdefault(name, value)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # named in sys.modules as not to be had
        return False
