"""`rmlora doctor`: three training steps of a run, and what they show to be wrong."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def add(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(no_args_is_help=True)(doctor)


def doctor(
    words: Annotated[
        list[str],
        typer.Argument(metavar="SETTINGS", help="As of `rmlora train`: a YAML or JSON file, and key=value words."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Take three training steps of a run and say what is wrong with it; writes nothing. Exit code 1: a problem.

    rmlora doctor run.yaml lr=5e-4 lora.r=16
    """
    from rich.console import Console

    from rmlora.commands.configuring import configure
    from rmlora.doctor.running import exit_code, run_doctor

    findings, told = run_doctor(configure(words, {}), None if as_json else Console())
    if as_json:
        typer.echo(json.dumps(told, indent=2))
    raise typer.Exit(exit_code(findings))
