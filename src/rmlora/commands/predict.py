"""`rmlora predict`: what a finished run answers, by its adapter alone or by an ensemble of its instances."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command(no_args_is_help=True)(predict)


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `rmlora train` wrote.")],
    data: Annotated[
        str | None, typer.Option(help="File of examples; labels may be missing.", show_default="the run's held-out")
    ] = None,
    ensemble: Annotated[
        int | None, typer.Option(metavar="N", help="Average N draws of a run of lora-dropout.", show_default="none")
    ] = None,
    average: Annotated[
        str | None, typer.Option(help="What is averaged: logits or probabilities.", show_default="logits")
    ] = None,
    chunk: Annotated[int | None, typer.Option(help="Instances computed at a time.", show_default="all")] = None,
    output: Annotated[
        Path | None, typer.Option(help="File of the predictions, JSON lines.", show_default="RUN/predicted.jsonl")
    ] = None,
) -> None:
    """Predict by a finished run, and say how good and how calibrated its predictions are.

    rmlora predict runs/rte

    rmlora predict runs/rte --data new.jsonl --ensemble 8 --average probabilities --output answers.jsonl
    """
    from rich.console import Console

    from rmlora.run.predict_run import Wanted, predict_run

    predict_run(run, Wanted(data, ensemble, average, chunk, output), Console())
