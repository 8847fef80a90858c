"""One federated run, from a configuration to a folder with everything that is known about it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from rmlora.config import RunConfig
from rmlora.config_source import dump
from rmlora.federated.exchange import exchange_here
from rmlora.federated.outcome import summarise
from rmlora.federated.progress import Progress, read_progress
from rmlora.federated.rounds import run_rounds
from rmlora.federated.settings import complete_federated
from rmlora.federated.showing import describe_clients, show_clients
from rmlora.federated.site import Site, make_site
from rmlora.files import write_text
from rmlora.run.alone import run_alone
from rmlora.run.card import write_card
from rmlora.run.curves import plot_curves
from rmlora.run.environment import continue_environment, describe_environment, package_version
from rmlora.run.folder import RunFolder, open_folder
from rmlora.run.plan import Described
from rmlora.run.show import show_plan, show_result
from rmlora.run.sources import Sources
from rmlora.run.trainer import quieten
from rmlora.run.weights import save_adapter
from rmlora.run.wording import say

_WHAT = "LoRA adapter, averaged over clients that each kept their own examples,"


def train_federated(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    sources: Sources | None = None,
) -> dict[str, Any]:
    """Train one adapter by many clients and a server that averages, and write the run's folder.

    Everything that can be wrong is checked before the folder is touched; result.json comes last, so that its presence
    means the run is whole.

    Args:
        config: with `scope: federated`.
        resume: go on after the last finished round, exactly as if never interrupted; do nothing if the run is finished.
        overwrite: replace a run that is in the folder.
        console: where to say what happens; None says nothing.
        sources: where examples and model come from; None reads them from disk.

    Returns:
        What result.json holds.

    Raises:
        RmloraError: something in the configuration, data, model or folder is wrong, Flower is missing, or a round has
            no client left.
    """

    def prepare(config: RunConfig, console: Console) -> tuple[Site, RunAll]:
        run_all = choose_runtime(config)
        site = make_site(config, sources)
        show_clients(console, site)
        return site, run_all

    def work(run: tuple[Site, RunAll], place: RunFolder, console: Console) -> dict[str, Any]:
        return _run(run[0], place, run[1], (resume, overwrite), console)

    told: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "console": console}
    return run_alone(config, complete_federated, prepare, work, **told)


def dry_run_federated(config: RunConfig, console: Console) -> Described:
    """Say what `train_federated` would do, having read the data and built the model; write nothing.

    Args:
        config: as for `train_federated`.
        console: where to say it.

    Raises:
        RmloraError: as for `train_federated`.
    """
    restore = quieten()
    try:
        config = complete_federated(config)
        choose_runtime(config)
        site = make_site(config)
    finally:
        restore()
    show_plan(console, site, describe_clients(site))
    return site


RunAll = Callable[[Site, RunFolder, Callable[[str], None]], Progress]
"""Runs all rounds that are missing, telling lines."""


def choose_runtime(config: RunConfig) -> RunAll:
    """Return what runs the rounds where the configuration says.

    Raises:
        ConfigError: Flower, or what it needs, is not installed or not running.
    """
    if config.federated.runtime == "local":
        return lambda site, place, tell: run_rounds(site, place, exchange_here(site), tell)
    from rmlora.federated.flower import choose_flower

    return choose_flower(config.federated)


def _run(site: Site, place: RunFolder, run_all: RunAll, asked: tuple[bool, bool], console: Console) -> dict[str, Any]:
    resume, overwrite = asked
    config, begun = site.config, time.monotonic()
    environment = describe_environment(config.model, site.model, site.data.files)
    if config.federated.runtime != "local":
        environment["versions"] |= {name: package_version(name) for name in ("flwr", "ray")}
    done = read_progress(place) if resume else Progress()
    if resume and place.environment.is_file():
        before = json.loads(place.environment.read_text(encoding="utf-8"))
        environment = continue_environment(before, environment, done.rows[-1]["step"] if done.rows else 0)
    open_folder(place, None, overwrite)
    if done.rounds == 0:
        place.progress.unlink(missing_ok=True)
    place.write_rows(done.rows)
    write_text(place.config, dump(config))
    write_text(place.environment, json.dumps(environment, indent=2) + "\n")
    if resume:
        say(console, f"Going on after round {done.rounds}." if done.rounds else "Going on from the beginning.")
    missing = done.rounds < config.federated.rounds
    progress = run_all(site, place, lambda line: say(console, line)) if missing else done
    site.write(progress.state)
    files = save_adapter(site.model, place.path, state=True)
    result = summarise(site, place, progress, time.monotonic() - begun, files)
    model = "/".join(Path(config.model).parts[-2:])
    title = f"{config.method} on {model}, {config.federated.clients} clients, {len(site.data.eval)} held out"
    plot_curves(place, progress.rows, site.metric, title)
    write_text(place.card, write_card(site, result, environment["versions"], _WHAT))
    write_text(place.result, json.dumps(result, indent=2) + "\n")
    show_result(console, site, result, place)
    return result
