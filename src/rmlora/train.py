"""One training run, from a configuration to a folder with everything that is known about it."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from rmlora.config import RunConfig
from rmlora.config_source import dump
from rmlora.files import write_text
from rmlora.run.card import write_card
from rmlora.run.checkpoints import KeepLatest
from rmlora.run.choice import complete
from rmlora.run.curves import plot_curves
from rmlora.run.divergence import StopAtNan
from rmlora.run.ensemble import evaluate_ensemble
from rmlora.run.environment import continue_environment, describe_environment
from rmlora.run.faults import explained
from rmlora.run.folder import RunFolder, check_folder, checkpoint_step, open_folder
from rmlora.run.generation import write_generated
from rmlora.run.inference import count_inference
from rmlora.run.lock import held, refuse_held
from rmlora.run.plan import Plan, make_plan
from rmlora.run.predictions import kept_reliability
from rmlora.run.progress import ShowProgress
from rmlora.run.record import RecordEpochs, SkipEvaluations, best_row
from rmlora.run.show import show_finished, show_header, show_plan, show_result
from rmlora.run.sources import Sources
from rmlora.run.trainer import make_trainer, quieten
from rmlora.run.weights import initial_factors, save_weights
from rmlora.run.wording import say


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    sources: Sources | None = None,
) -> dict[str, Any]:
    """Train one model by one method and write the run's folder.

    Everything that can be wrong is checked before the folder is touched. Files are written to a temporary name and
    renamed; result.json comes last, so that its presence means the run is whole.

    Args:
        config: as `rmlora.config_source.resolve` returns it.
        resume: go on from the last complete checkpoint in the folder, exactly as if never interrupted; from the
            beginning if there is none; do nothing if the run is finished.
        overwrite: replace a run that is in the folder.
        console: where to say what happens; None says nothing.
        sources: where examples and model come from; None reads them from disk.

    Returns:
        What result.json holds: best and last epoch, counts, times.

    Raises:
        RmloraError: something in the configuration, data, model or folder is wrong, training diverged, the memory or
            the disk is full, or another process trains in the folder.
    """
    console = console or Console(quiet=True)
    restore = quieten()
    try:
        config = complete(config)
        folder = RunFolder(Path(str(config.output)))
        if check_folder(folder, config, resume, overwrite):
            return show_finished(folder, console)
        refuse_held(folder)
        plan = make_plan(config, sources)
        if not plan.arguments.should_save:  # another process of the job speaks
            console = Console(quiet=True)
        show_header(console, plan)
        writes = plan.arguments.should_save  # of several processes one does
        with held(folder) if writes else nullcontext(), explained(folder.path, config.training):
            if writes and check_folder(folder, config, resume, overwrite):  # by another process, meanwhile
                return show_finished(folder, console)
            return _run(plan, folder, resume, overwrite, console)
    finally:
        restore()


def dry_run(config: RunConfig, console: Console) -> Plan:
    """Say what `train` would do, having read the data and built the model, and write nothing.

    Args:
        config: as for `train`.
        console: where to say it.

    Raises:
        RmloraError: as for `train`.
    """
    restore = quieten()
    try:
        plan = make_plan(complete(config))
        show_plan(console, plan)
        return plan
    finally:
        restore()


def _run(plan: Plan, folder: RunFolder, resume: bool, overwrite: bool, console: Console) -> dict[str, Any]:
    environment = describe_environment(plan.config.model, plan.model, plan.data.files, plan.config.init_adapter)
    checkpoint = folder.checkpoint() if resume else None
    if checkpoint is not None and folder.environment.is_file():
        begun_as = json.loads(folder.environment.read_text(encoding="utf-8"))
        environment = continue_environment(begun_as, environment, checkpoint_step(checkpoint))
    begun = time.monotonic()
    initial = initial_factors(plan)
    progress = ShowProgress(console, folder, plan.metric)
    if plan.arguments.should_save:  # the one process that writes
        open_folder(folder, checkpoint, overwrite)
        write_text(folder.config, dump(plan.config))
        write_text(folder.environment, json.dumps(environment, indent=2) + "\n")
    trainer = make_trainer(plan, _callbacks(plan, folder, progress))
    if resume:
        where = f"from {checkpoint.name}" if checkpoint else "from the beginning: there is no checkpoint yet"
        say(console, f"Going on {where}.")
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        progress.close()
    if plan.handle is not None:
        plan.handle.bind(trainer.optimizer)  # with nothing left to train no forward pass has looked for it
    if not plan.arguments.should_save:
        return {}
    result = _summarise(plan, folder, trainer.state.global_step, time.monotonic() - begun) | kept_reliability(folder)
    result["files"] = save_weights(plan, initial, folder.path)
    result["parameters"] |= count_inference(folder.path, plan.counts)
    result |= evaluate_ensemble(plan, folder, result["steps"])
    if plan.config.task == "causal-lm":
        result |= write_generated(plan, folder)
    model = "/".join(Path(plan.config.model).parts[-2:])
    title = f"{plan.config.method} on {model}, {len(plan.data.eval)} held out"
    plot_curves(folder, folder.rows(), plan.metric, title)
    write_text(folder.card, write_card(plan, result, environment["versions"]))
    write_text(folder.result, json.dumps(result, indent=2) + "\n")
    show_result(console, plan, result, folder)
    return result


def _callbacks(plan: Plan, folder: RunFolder, progress: ShowProgress) -> list[Any]:
    """What watches the training, in the order in which it acts."""
    training = plan.config.training
    sparing, keeping = SkipEvaluations(training.evaluate_every), KeepLatest(training.keep_checkpoints)
    return [StopAtNan(folder), sparing, RecordEpochs(folder, plan.metric, plan.handle), progress, keeping]


def _summarise(plan: Plan, folder: RunFolder, steps: int, seconds: float) -> dict[str, Any]:
    """Put a finished run into one record: best epoch, last epoch, and what they are to be seen against."""
    rows = folder.rows()
    config = plan.config
    return {
        "model": config.model,
        "method": config.method,
        "method_args": config.method_args,
        "links": plan.links,
        "task": config.task,
        "seed": config.training.seed,
        "metric": plan.metric,
        "best": best_row(rows, plan.metric),
        "last": rows[-1],
        "saved": config.training.save,
        "majority": plan.data.majority,
        "examples": {"train": len(plan.data.train), "eval": len(plan.data.eval)},
        "parameters": {
            "adapter": plan.counts.adapter,
            "head": plan.counts.head,
            "base": plan.counts.base,
            "trainable": plan.counts.trainable,
            "frozen": plan.counts.frozen,
        },
        "steps": steps,
        "seconds": round(seconds, 1),
    }
