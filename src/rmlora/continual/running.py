"""One continual run, from a configuration to a folder with everything known about it."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from rmlora.config import RunConfig
from rmlora.config_source import dump
from rmlora.continual.drawing import plot_matrix, plot_stages
from rmlora.continual.learning import Learned, learn_stage
from rmlora.continual.learnt import read_learnt, write_learnt
from rmlora.continual.matrix import Matrix, accuracies_of, within_tasks
from rmlora.continual.outcome import (
    count_last,
    describe_tasks,
    parameters_of,
    save_last,
    stage_row,
    summarise,
)
from rmlora.continual.plan import ContinualRun, Stage, prepare
from rmlora.continual.settings import complete_continual
from rmlora.continual.showing import show_continual_header, show_continual_plan, show_continual_result, stage_line
from rmlora.errors import StateError
from rmlora.files import write_bytes, write_text
from rmlora.run.alone import run_alone
from rmlora.run.card import write_card
from rmlora.run.environment import continue_environment, describe_environment
from rmlora.run.folder import RunFolder, open_folder
from rmlora.run.predictions import kept_reliability
from rmlora.run.record import Row
from rmlora.run.sources import Sources
from rmlora.run.trainer import quieten
from rmlora.run.wording import say


@dataclass
class Progress:
    """What is finished, as checkpoints/progress.json holds it.

    Attributes:
        rows: of metrics.jsonl, one for each finished stage.
        matrix: likewise.
        seconds: spent on them.
        files: of the saved adapter, once the last stage is finished.
        parameters: counts, likewise.
    """

    rows: list[Row] = field(default_factory=list)
    matrix: Matrix = field(default_factory=list)
    seconds: float = 0.0
    files: list[str] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)


def train_continual(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    sources: Sources | None = None,
) -> dict[str, Any]:
    """Learn the tasks of a data set one after the other and write the run's folder.

    Everything that can be wrong is checked before the folder is touched; result.json comes last, so that its presence
    means the run is whole.

    Args:
        config: with `scope: continual`.
        resume: go on behind the last finished task, exactly as if never interrupted; do nothing if all is done.
        overwrite: replace a run that is in the folder.
        console: where to say what happens; None says nothing.
        sources: where examples and model come from; None reads each once.

    Returns:
        What result.json holds.

    Raises:
        RmloraError: something in the configuration, data, model or folder is wrong, or training diverged.
    """

    def ready(config: RunConfig, console: Console) -> ContinualRun:
        run = prepare(config, sources)
        show_continual_header(console, run)
        return run

    def work(run: ContinualRun, place: RunFolder, console: Console) -> dict[str, Any]:
        environment = describe_environment(run.config.model, run.first.model, run.data.files)
        progress = _read_progress(place) if resume else Progress()
        if resume:
            step = progress.rows[-1]["step"] if progress.rows else 0
            environment = _continued(place, environment, step)
            say(console, f"Going on behind task {len(progress.rows)} of {len(run.stages)}.")
        open_folder(place, None, overwrite)
        return _run(run, place, environment, progress, console)

    told: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "console": console}
    return run_alone(config, complete_continual, ready, work, **told)


def dry_run_continual(config: RunConfig, console: Console) -> ContinualRun:
    """Say what `train_continual` would do, having read the data and built the model; write nothing.

    Args:
        config: as for `train_continual`.
        console: where to say it.

    Raises:
        RmloraError: as for `train_continual`.
    """
    restore = quieten()
    try:
        run = prepare(config)
    finally:
        restore()
    show_continual_plan(console, run)
    return run


def _run(
    run: ContinualRun, place: RunFolder, environment: dict[str, Any], progress: Progress, console: Console
) -> dict[str, Any]:
    write_text(place.config, dump(run.config))
    write_text(place.environment, json.dumps(environment, indent=2) + "\n")
    place.write_rows(progress.rows)
    _learn_all(run, place, progress, console)
    rows, matrix = progress.rows, progress.matrix
    assert run.data.classes is not None
    names = [[run.data.classes.names[c] for c in task] for task in run.tasks]
    write_text(place.matrix, json.dumps({"tasks": names, "accuracy": matrix}, indent=2) + "\n")
    result = summarise(run, rows, progress.parameters, progress.seconds, progress.files) | kept_reliability(place)
    strategy = run.config.continual.strategy
    title = f"{strategy} ({run.config.method}) on {'/'.join(Path(run.config.model).parts[-2:])}"
    plot_matrix(place.heat_map, matrix, title)
    plot_stages(place.curves, rows, title)
    card = write_card(run, result, environment["versions"], usage="")
    write_text(place.card, card + "\n" + describe_tasks(run, matrix, result))
    write_text(place.result, json.dumps(result, indent=2) + "\n")
    show_continual_result(console, run, result, place)
    return result


def _learn_all(run: ContinualRun, place: RunFolder, progress: Progress, console: Console) -> None:
    """Learn what is not finished yet, and note after each stage that it is."""
    stages, done_before = run.stages, len(progress.rows)
    before = read_learnt(_learnt_file(place, done_before)) if 0 < done_before < len(stages) else None
    _tidy(place, done_before)
    begun = time.monotonic()
    spent = progress.seconds
    for stage in stages[done_before:]:
        done = learn_stage(run, stage, before, console)
        before = done.learnt
        _note(run, place, progress, stage, done)
        progress.seconds = spent + time.monotonic() - begun
        _write_progress(place, progress)
        _tidy(place, stage.number)
        place.write_rows(progress.rows)
        each = (time.monotonic() - begun) / (stage.number - done_before)
        say(console, stage_line(run, progress.rows[-1], each * (len(stages) - stage.number)))


def _note(run: ContinualRun, place: RunFolder, progress: Progress, stage: Stage, done: Learned) -> None:
    """Write what a finished stage leaves, before progress.json says that it is there."""
    from safetensors.numpy import load

    held_out = load(done.predictions)
    step = done.steps + (progress.rows[-1]["step"] if progress.rows else 0)
    progress.matrix.append(accuracies_of(held_out["logits"], held_out["labels"], stage.seen))
    within = within_tasks(held_out["logits"], held_out["labels"], stage.seen)
    progress.rows.append(stage_row(stage, done, progress.matrix, within, step))
    write_bytes(place.predictions, done.predictions)
    if stage.number < len(run.stages):
        place.checkpoints.mkdir(parents=True, exist_ok=True)
        write_learnt(_learnt_file(place, stage.number), done.learnt)
    else:
        progress.files = save_last(run, done, place.path)
        progress.parameters = parameters_of(count_last(run, done), place.path)


def _learnt_file(place: RunFolder, stage: int) -> Path:
    return place.checkpoints / f"learnt-{stage:03d}.safetensors"


def _write_progress(place: RunFolder, progress: Progress) -> None:
    place.checkpoints.mkdir(parents=True, exist_ok=True)
    write_text(place.progress, json.dumps(vars(progress), indent=2) + "\n")


def _read_progress(place: RunFolder) -> Progress:
    if not place.progress.is_file():
        return Progress()
    try:
        return Progress(**json.loads(place.progress.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise StateError(f'"{place.progress}" is damaged; start the run anew with --overwrite') from error


def _tidy(place: RunFolder, stage: int) -> None:
    """Delete what an interrupted stage left, and what the finished one needs no more."""
    keep = {place.progress.name, _learnt_file(place, stage).name}
    for path in place.checkpoints.iterdir() if place.checkpoints.is_dir() else ():
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _continued(place: RunFolder, now: dict[str, Any], step: int) -> dict[str, Any]:
    """Refuse to go on where model or data have changed since the run began."""
    if not place.environment.is_file():
        return now
    return continue_environment(json.loads(place.environment.read_text(encoding="utf-8")), now, step)
