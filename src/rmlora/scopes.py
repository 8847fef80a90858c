"""What a configuration's `scope` stands for: who trains it, who foretells it, who checks it before anything runs."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from rmlora.config import RunConfig
from rmlora.run.plan import Described
from rmlora.run.sources import Sources


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
    told: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "console": console}
    if config.scope == "head":
        from rmlora.heads import train_head

        return train_head(config, **told)
    if config.scope == "federated":
        from rmlora.federated import train_federated

        return train_federated(config, **told, sources=sources)
    from rmlora.train import train

    return train(config, **told, sources=sources)


def foretell(config: RunConfig, console: Console) -> Described:
    """Say what `run` would do; write nothing.

    Args:
        config: of any scope.
        console: where to say it.

    Raises:
        RmloraError: as `run`.
    """
    if config.scope == "head":
        from rmlora.heads import dry_run_head

        return dry_run_head(config, console)
    if config.scope == "federated":
        from rmlora.federated import dry_run_federated

        return dry_run_federated(config, console)
    from rmlora.train import dry_run

    return dry_run(config, console)


def check(config: RunConfig) -> None:
    """Refuse settings that contradict their scope, without reading model or data.

    Raises:
        ConfigError: they do.
    """
    if config.scope == "head":
        from rmlora.heads.settings import complete_head

        complete_head(config)
    if config.scope == "federated":
        from rmlora.federated.settings import complete_federated

        complete_federated(config)
