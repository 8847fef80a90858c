"""`rmlora compare`: run a study of methods, or go on with it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmlora.errors import ConfigError

if TYPE_CHECKING:
    from rmlora.compare.backends import Place
    from rmlora.compare.study import Study


class Backend(StrEnum):
    """Where cells are run."""

    local = "local"
    ray = "ray"
    slurm = "slurm"


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
    backend: Annotated[
        Backend, typer.Option(help="Processes here, tasks on a Ray cluster, or Slurm jobs.")
    ] = Backend.local,
    gpus: Annotated[
        float | None, typer.Option(help="Per cell; on Ray 0.5 is half of one.", show_default="share")
    ] = None,
    retries: Annotated[
        int | None, typer.Option(min=0, help="Of a cell whose process died.", show_default="1; ray, slurm: 3")
    ] = None,
    slurm: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="partition, account, qos, time, mem or executor.")
    ] = None,
    output: Annotated[str | None, typer.Option(help="Folder of the study.", show_default="studies/<name>")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
) -> None:
    """Compare methods on tasks, fairly; killed and started again it runs only what is missing."""
    from rich.console import Console

    from rmlora.compare.backends import Place
    from rmlora.compare.reading import read_study
    from rmlora.compare.running import compare as run
    from rmlora.compare.slurm_settings import with_words

    told = read_study(study)
    told = told if output is None else told.model_copy(update={"output": output})
    if slurm and backend != Backend.slurm:
        raise ConfigError(f"--slurm is for --backend slurm, not {backend.value}")
    place = Place(backend.value, workers, threads, gpus, retries, with_words(told.slurm, slurm or []))
    if dry_run:
        _foresee(told, place)
    else:
        run(told, **vars(place), console=Console())


def _foresee(study: Study, place: Place) -> None:
    """Say what a study would do."""
    from rich.console import Console

    from rmlora.compare.agenda import Agenda
    from rmlora.compare.backends import default_workers
    from rmlora.compare.budget import show_budget, show_cells
    from rmlora.compare.store import Store

    place.check()
    agenda = Agenda(study, Store(study.folder)).look()
    show_budget(study, agenda, Console())
    show_cells(agenda, default_workers() if place.workers is None else place.workers, Console())
