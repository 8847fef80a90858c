"""The frame of a run in one process: what is refused before its folder is touched, and who writes there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from rmlora.config import RunConfig
from rmlora.run.faults import explained
from rmlora.run.folder import RunFolder, check_folder
from rmlora.run.lock import held, refuse_held
from rmlora.run.show import show_finished
from rmlora.run.trainer import quieten

P = TypeVar("P")


def run_alone(
    config: RunConfig,
    complete: Callable[[RunConfig], RunConfig],
    prepare: Callable[[RunConfig, Console], P],
    work: Callable[[P, RunFolder, Console], dict[str, Any]],
    *,
    resume: bool,
    overwrite: bool,
    console: Console | None,
) -> dict[str, Any]:
    """Check a run, make it ready, and let it work in its folder, which it alone holds.

    Args:
        config: as resolved.
        complete: fills in what is left open, and refuses what contradicts itself.
        prepare: makes ready all that can be wrong, and says what is to be done; writes nothing in the folder.
        work: does it, in the folder; result.json comes last.
        resume: go on with what lies in the folder.
        overwrite: replace what lies there.
        console: where to say what happens; None says nothing.

    Returns:
        What `work` returns; of a run that is finished already, its result.

    Raises:
        RmloraError: whatever is wrong; also what the machine does to the run, in a line that says what helps.
    """
    console = console or Console(quiet=True)
    restore = quieten()
    try:
        config = complete(config)
        place = RunFolder(Path(str(config.output)))
        if check_folder(place, config, resume, overwrite):
            return show_finished(place, console)
        refuse_held(place)
        run = prepare(config, console)
        with held(place), explained(place.path, config.training):
            if place.config.is_file() and check_folder(place, config, resume, overwrite):  # by another, meanwhile
                return show_finished(place, console)
            return work(run, place, console)
    finally:
        restore()
