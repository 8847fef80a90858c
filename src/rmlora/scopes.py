"""What a configuration's `scope` stands for: who trains it, who foretells it, who checks it before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from rich.console import Console

from rmlora.config import RunConfig, Scope
from rmlora.run.plan import Described
from rmlora.run.sources import Sources


class Room(NamedTuple):
    """Who does what for a scope.

    Attributes:
        train: runs a configuration into its output folder.
        dry_run: says what that would do.
        complete: fills in what is left open, and refuses what contradicts itself.
    """

    train: Callable[..., dict[str, Any]]
    dry_run: Callable[[RunConfig, Console], Described]
    complete: Callable[[RunConfig], RunConfig]


def run(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    sources: Sources | None = None,
) -> dict[str, Any]:
    """Run what a configuration says into its output folder.

    Everything that can be wrong is checked before the folder is touched; result.json comes last, so that its presence
    means the run is whole.

    Args:
        config: of any scope.
        resume: go on with what lies in the folder; finished, nothing is done.
        overwrite: replace what lies there.
        console: where to say what happens; None says nothing.
        sources: where examples and model come from; None reads them from disk.

    Returns:
        What result.json holds: at least `metric`, and the rows `best` and `last`.

    Raises:
        RmloraError: whatever is wrong.
    """
    kept = {} if config.scope == "head" else {"sources": sources}  # features have a cache of their own
    return _room(config.scope).train(config, resume=resume, overwrite=overwrite, console=console, **kept)


def foretell(config: RunConfig, console: Console) -> Described:
    """Say what `run` would do; write nothing.

    Args:
        config: of any scope.
        console: where to say it.

    Raises:
        RmloraError: as `run`.
    """
    return _room(config.scope).dry_run(config, console)


def check(config: RunConfig) -> None:
    """Refuse settings that contradict their scope, without reading model or data.

    Raises:
        ConfigError: they do.
    """
    if config.scope != "whole":  # whose settings every configuration is checked for
        _room(config.scope).complete(config)


def _room(scope: Scope) -> Room:
    """Import a scope's room, and no other."""
    if scope == "head":
        from rmlora.heads import dry_run_head, train_head
        from rmlora.heads.settings import complete_head

        return Room(train_head, dry_run_head, complete_head)
    if scope == "mixture":
        from rmlora.mixture import complete_mixture, dry_run_mixture, train_mixture

        return Room(train_mixture, dry_run_mixture, complete_mixture)
    if scope == "continual":
        from rmlora.continual import dry_run_continual, train_continual
        from rmlora.continual.settings import complete_continual

        return Room(train_continual, dry_run_continual, complete_continual)
    if scope == "federated":
        from rmlora.federated import dry_run_federated, train_federated
        from rmlora.federated.settings import complete_federated

        return Room(train_federated, dry_run_federated, complete_federated)
    if scope == "derivative-free":
        from rmlora.derivative_free import dry_run_search, train_search
        from rmlora.derivative_free.settings import complete_search

        return Room(train_search, dry_run_search, complete_search)
    from rmlora.run.choice import complete
    from rmlora.train import dry_run, train

    return Room(train, dry_run, complete)
