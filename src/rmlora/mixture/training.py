"""One run of a mixture, from a configuration to a folder with everything that is known about it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from rmlora.config import RunConfig
from rmlora.config_source import dump
from rmlora.files import write_text
from rmlora.mixture.card import write_mixture_card
from rmlora.mixture.outcome import continue_inputs, count_used, describe_inputs, summarise, write_weights
from rmlora.mixture.plan import MixtureRun, prepare
from rmlora.mixture.recording import RecordGates
from rmlora.mixture.selection import choose_expert, read_selection
from rmlora.mixture.settings import complete_mixture
from rmlora.run.alone import run_alone
from rmlora.run.card import write_card
from rmlora.run.checkpoints import KeepLatest
from rmlora.run.curves import plot_curves
from rmlora.run.divergence import StopAtNan
from rmlora.run.folder import RunFolder, checkpoint_step, open_folder
from rmlora.run.plan import Plan
from rmlora.run.predictions import kept_reliability
from rmlora.run.progress import ShowProgress
from rmlora.run.record import RecordEpochs, SkipEvaluations
from rmlora.run.show import show_header, show_plan, show_result
from rmlora.run.sources import Sources
from rmlora.run.trainer import make_trainer, quieten
from rmlora.run.wording import say


def train_mixture(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    sources: Sources | None = None,
) -> dict[str, Any]:
    """Put trained adapters together, train what that needs, and write the run's folder.

    Everything that can be wrong is checked before the folder is touched; result.json comes last, so that its presence
    means the run is whole. A resumed run ends bit for bit as one that was never interrupted.

    Args:
        config: with `scope: mixture`; the experts are in its section `mixture`.
        resume: go on with what lies in the folder; finished, nothing is done.
        overwrite: replace a run that is in the folder.
        console: where to say what happens; None says nothing.
        sources: where examples and model come from; None reads them from disk.

    Returns:
        What result.json holds.

    Raises:
        RmloraError: something in the configuration, an expert, data, model or folder is wrong, or training diverged.
    """
    kept = sources or Sources()

    def ready(config: RunConfig, console: Console) -> MixtureRun:
        run = prepare(config, kept)
        show_header(console, run.plan)
        return run

    def work(run: MixtureRun, place: RunFolder, console: Console) -> dict[str, Any]:
        return _run(run, kept, place, resume, overwrite, console)

    told: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "console": console}
    return run_alone(config, complete_mixture, ready, work, **told)


def dry_run_mixture(config: RunConfig, console: Console) -> Plan:
    """Say what `train_mixture` would do, having read the data and built the model, and write nothing.

    Args:
        config: as for `train_mixture`.
        console: where to say it.

    Raises:
        RmloraError: as for `train_mixture`.
    """
    restore = quieten()
    try:
        run = prepare(config, Sources())
        names = [f"Expert {e.name}: {e.path}, of {e.base}, sha256 {e.sha256[:12]}" for e in run.experts]
        show_plan(console, run.plan, names)
        return run.plan
    finally:
        restore()


def _run(
    run: MixtureRun, sources: Sources, place: RunFolder, resume: bool, overwrite: bool, console: Console
) -> dict[str, Any]:
    environment = describe_inputs(run)
    checkpoint = place.checkpoint() if resume else None
    begun = time.monotonic()
    if place.environment.is_file() and resume and (checkpoint is not None or read_selection(place)):
        begun_as = json.loads(place.environment.read_text(encoding="utf-8"))
        environment = continue_inputs(begun_as, environment, checkpoint_step(checkpoint) if checkpoint else 0)
    open_folder(place, checkpoint, overwrite)
    write_text(place.config, dump(run.plan.config))
    write_text(place.environment, json.dumps(environment, indent=2) + "\n")
    selection: dict[str, float] = {}
    if run.plan.config.mixture.combine == "best":
        names = [expert.name for expert in run.experts]
        selection = choose_expert(run.plan.config, names, sources, place, console)
        run = prepare(run.plan.config, sources, only=[max(names, key=lambda name: selection[name])])
        say(console, f"Taken: {run.used[0].name}")
    if resume:
        say(console, f"Going on {f'from {checkpoint.name}' if checkpoint else 'from the beginning of training'}.")
    _train(run, place, checkpoint, console)
    result = summarise(run, place.rows(), selection, time.monotonic() - begun) | kept_reliability(place)
    result["files"] = write_weights(run, place.path)
    result["parameters"] |= count_used(run, place.path)
    _show(run, place, result, environment["versions"], console)
    return result


def _train(run: MixtureRun, place: RunFolder, checkpoint: Path | None, console: Console) -> None:
    training, metric = run.plan.config.training, run.plan.metric
    progress = ShowProgress(console, place, metric)
    watching = [RecordEpochs(place, metric), RecordGates(place, run), progress, KeepLatest(training.keep_checkpoints)]
    trainer = make_trainer(run.plan, [StopAtNan(place), SkipEvaluations(training.evaluate_every), *watching])
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        progress.close()


def _show(
    run: MixtureRun, place: RunFolder, result: dict[str, Any], versions: dict[str, str | None], console: Console
) -> None:
    """Draw the curves, write the card, and then the result, which says that all is there."""
    plan, combine = run.plan, run.plan.config.mixture.combine
    model = "/".join(Path(plan.config.model).parts[-2:])
    title = f"mixture of {len(run.experts)} experts ({combine}) on {model}, {len(plan.data.eval)} held out"
    plot_curves(place, place.rows(), plan.metric, title)
    card = write_card(plan, result, versions) if run.mixture is None else write_mixture_card(run, result, versions)
    write_text(place.card, card)
    write_text(place.result, json.dumps(result, indent=2) + "\n")
    show_result(console, plan, result, place)
