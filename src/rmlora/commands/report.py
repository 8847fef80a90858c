"""`rmlora report`: a study's table, figures and verdicts as one page, Markdown and LaTeX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command(no_args_is_help=True)(report)


def report(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder that `rmlora compare` wrote.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the report.", show_default="STUDY/report")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Method everything is compared with.", show_default="lora")
    ] = None,
) -> None:
    """Write what a study shows: report.html (one file to mail), report.md and report.tex.

    rmlora report studies/rte

    rmlora report studies/rte --baseline full --output rte-report
    """
    from rich.console import Console

    from rmlora.report.write import write_report

    console = Console()
    written = write_report(study, output, baseline)
    for path in written[:3]:
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)
