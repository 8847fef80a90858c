"""Running a preset: its studies one after the other, the paper's numbers put beside what came out."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console

from rmlora.compare.cells import final_cells, only_rates
from rmlora.compare.running import compare
from rmlora.compare.store import Store
from rmlora.compare.study import Study
from rmlora.files import write_text
from rmlora.heads.plan import prepare
from rmlora.report.write import write_report
from rmlora.reproduce.beside import Row, add_published
from rmlora.reproduce.local import display_name
from rmlora.reproduce.present import comparison_table, to_markdown
from rmlora.reproduce.presets import Preset
from rmlora.reproduce.studies import cells_at_once, studies_of
from rmlora.run.wording import duration, say


def compute_features(study: Study, console: Console) -> None:
    """Have the features of a study of classification layers in the cache, once, before workers ask for them.

    Args:
        study: of mode "head".
        console: where to say what happens.

    Raises:
        RmloraError: model or data cannot be read.
    """
    cells = {(cell.group.model, cell.group.task): cell for cell in final_cells(study, only_rates(study))}
    for (model, task), cell in cells.items():
        begun = time.monotonic()
        say(console, f"Features of {task} by {display_name(model)} ...")
        came = "computed" if prepare(cell.config).features.computed else "from the cache"
        say(console, f"Features of {task} by {display_name(model)}: {came}, {duration(time.monotonic() - begun)}")


def reproduce(
    preset: Preset,
    output: Path,
    *,
    seeds: int | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> list[Row]:
    """Run what is missing of a preset's studies and write rows, reports and the comparison with the paper.

    Args:
        preset: of the paper, or a local one.
        output: folder of all of it.
        seeds: how many instead of the paper's three.
        workers: cells side by side; None as `rmlora compare` chooses, or one per core for classification layers.
        console: where to say what happens; None says nothing.

    Returns:
        The rows of all studies, each with `published`, the paper's number, where there is one.

    Raises:
        RmloraError: as `rmlora.compare.running.compare`.
    """
    console = console or Console(quiet=True)
    rows: list[Row] = []
    for study in studies_of(preset, output, seeds):
        say(console, study.name)
        if study.mode == "head":
            compute_features(study, console)
        found = [
            add_published(row, preset) for row in compare(study, workers=cells_at_once(study, workers), console=console)
        ]
        write_text(Store(study.folder).rows, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
        write_report(study.folder)
        rows += found
    write_text(output / "published.md", to_markdown(preset, rows))
    console.print(comparison_table(preset, rows))
    for note in preset.notes:
        say(console, f"- {note}")
    say(console, f"Reports: {', '.join(str(study.folder) for study in studies_of(preset, output, seeds))}")
    return rows
