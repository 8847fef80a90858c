"""From a preset to studies that can be run, each in a folder of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

from rmlora.compare.backends import default_workers
from rmlora.compare.reading import make_study
from rmlora.compare.study import Study
from rmlora.config import Task
from rmlora.errors import ConfigError
from rmlora.reproduce.presets import Preset, Settings


def studies_of(preset: Preset, output: Path, seeds: int | None = None) -> list[Study]:
    """Make the studies of a preset, each in a folder of its own under `output`.

    Args:
        preset: of the paper, or a local one.
        output: a preset of one study lies right there.
        seeds: how many instead of the paper's three.

    Raises:
        ConfigError: a study contradicts itself, or needs a kind of task that is not there.
    """
    made = []
    for settings in preset.studies:
        lacking = {task.get("task") for task in settings["tasks"]} - {*get_args(Task), None}
        if lacking:
            raise ConfigError(
                f"{preset.name} needs the task {lacking.pop()}, which this version of rmlora does not have"
            )
        place = output if len(preset.studies) == 1 else output / settings["name"]
        changes: Settings = {"name": _title(preset, settings), "output": str(place)}
        if seeds is not None:
            changes["seeds"] = list(range(seeds))
        made.append(make_study(settings | changes, preset.name))
    return made


def cells_at_once(study: Study, workers: int | None = None) -> int:
    """Return how many cells of a study to run side by side: one per core for classification layers.

    Args:
        study: a layer alone is trained on one core, a whole model by default on two, or on a GPU.
        workers: how many were asked for; None leaves it open.
    """
    if workers is not None:
        return workers
    return (os.cpu_count() or 1) if study.mode == "head" else default_workers()


def _title(preset: Preset, settings: Settings) -> str:
    extra = settings["name"].partition("-sora")
    return f"{preset.title}{', SoRA' if extra[1] else ''}{extra[2].replace('-', ' ')}"
