"""`rmlora replay`: a run once more from its folder alone, and whether the same bits come out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command(no_args_is_help=True)(replay)


def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run, or of a cell of a study.")],
    output: Annotated[
        Path | None, typer.Option(help="Keep the replay in this folder.", show_default="a temporary one")
    ] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Replay although data or model have changed.")] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run the code that the run's model brought. Only if you trust it."),
    ] = False,
) -> None:
    """Run a run again and compare weights, metrics and predictions bit by bit; exit code 1 if they differ.

    rmlora replay runs/rte
    """
    from rich.console import Console

    from rmlora.replay import replay as run_again

    found = run_again(run, output, anyway=anyway, trust_remote_code=trust_remote_code, console=Console())
    if any(finding.difference is not None for finding in found):
        raise typer.Exit(1)
