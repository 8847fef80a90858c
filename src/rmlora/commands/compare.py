"""`rmlora compare`: run a study of methods, or go on with it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Backend(StrEnum):
    """Where cells are run."""

    local = "local"
    ray = "ray"


def add(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(no_args_is_help=True)(compare)


def compare(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A YAML file; see docs/compare.md.")],
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Cells run side by side; 0: in this process.", show_default="1 per GPU or 2 cores"),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each worker.", show_default="cores / workers")] = None,
    backend: Annotated[Backend, typer.Option(help="Processes here, or tasks on a Ray cluster.")] = Backend.local,
    output: Annotated[str | None, typer.Option(help="Folder of the study.", show_default="studies/<name>")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
) -> None:
    """Compare methods on tasks, fairly; killed and started again it runs only what is missing."""
    from rich.console import Console

    from rmlora.compare.agenda import Agenda
    from rmlora.compare.budget import show_budget, show_cells
    from rmlora.compare.reading import read_study
    from rmlora.compare.running import compare as run
    from rmlora.compare.running import default_workers
    from rmlora.compare.store import Store

    told = read_study(study)
    if output is not None:
        told = told.model_copy(update={"output": output})
    if not dry_run:
        run(told, workers=workers, threads=threads, backend=backend.value, console=Console())
        return
    agenda = Agenda(told, Store(told.folder)).look()
    show_budget(told, agenda, Console())
    show_cells(agenda, default_workers() if workers is None else workers, Console())
