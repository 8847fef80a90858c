"""One search, from a configuration to a folder with a plain adapter and everything that is known about it."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from rmlora.config import RunConfig
from rmlora.config_source import dump
from rmlora.derivative_free.evolution import import_cma
from rmlora.derivative_free.recording import Recorder
from rmlora.derivative_free.searching import Found, search
from rmlora.derivative_free.settings import complete_search
from rmlora.derivative_free.subject import Subject, make_subject
from rmlora.errors import RmloraWarning, StateError
from rmlora.files import write_bytes, write_text
from rmlora.run.alone import run_alone
from rmlora.run.card import write_card
from rmlora.run.curves import plot_curves
from rmlora.run.environment import continue_environment, describe_environment
from rmlora.run.folder import RunFolder, open_folder
from rmlora.run.inference import count_inference
from rmlora.run.plan import Plan, make_plan
from rmlora.run.predictions import kept_reliability
from rmlora.run.record import Row, best_row
from rmlora.run.show import show_header, show_plan, show_result
from rmlora.run.sources import Sources
from rmlora.run.trainer import quieten
from rmlora.run.weights import save_weights
from rmlora.run.wording import say
from rmlora.tasks.predictions import answers

WHAT = "LoRA adapter that was searched for by forward passes alone"


def train_search(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    sources: Sources | None = None,
) -> dict[str, Any]:
    """Search for an adapter of one model and write the run's folder.

    The classifier is fitted to the frozen model's features first and stays; then CMA-ES looks for A and B. Everything
    that can be wrong is checked before the folder is touched; result.json comes last.

    Args:
        config: with `scope: derivative-free`; `training.lr` is the step size the search begins with, `training.seed`
            decides candidates and projections.
        resume: go on after the last whole round, to the bits of a run that was never interrupted.
        overwrite: replace a run that is in the folder.
        console: where to say what happens; None says nothing.
        sources: where examples and model come from; None reads them from disk.

    Returns:
        What result.json holds.

    Raises:
        RmloraError: something in the configuration, data, model or folder is wrong, or pycma is not installed.
    """
    import_cma()

    def prepare(config: RunConfig, console: Console) -> Plan:
        plan = _plan(config, sources)
        show_header(console, plan)
        return plan

    def work(plan: Plan, folder: RunFolder, console: Console) -> dict[str, Any]:
        return _run(plan, folder, resume, overwrite, console)

    told: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "console": console}
    return run_alone(config, complete_search, prepare, work, **told)


def dry_run_search(config: RunConfig, console: Console) -> Plan:
    """Say what `train_search` would do, having read the data and built the model; write nothing.

    Args:
        config: with `scope: derivative-free`.
        console: where to say it.

    Raises:
        RmloraError: as `train_search`.
    """
    restore = quieten()
    try:
        plan = _plan(complete_search(config), None)
        subject = make_subject(plan)
        show_plan(console, plan, [subject.wording()])
        return plan
    finally:
        restore()


def _plan(config: RunConfig, sources: Sources | None) -> Plan:
    """Read the data and build the model as a run through the whole model would."""
    plan = make_plan(config.model_copy(update={"scope": "whole"}), sources)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RmloraWarning)  # that no optimizer ever stepped
        plan.handle.detach()
    return replace(plan, config=config)


def _run(plan: Plan, folder: RunFolder, resume: bool, overwrite: bool, console: Console) -> dict[str, Any]:
    environment = describe_environment(plan.config.model, plan.model, plan.data.files, plan.config.init_adapter)
    told = _told(folder) if resume else []
    if folder.environment.is_file() and told:
        begun_as = json.loads(folder.environment.read_text(encoding="utf-8"))
        environment = continue_environment(begun_as, environment, step=len(told))
    before = folder.rows() if told else []
    open_folder(folder, None, overwrite)
    folder.write_rows(before)
    write_text(folder.config, dump(plan.config))
    write_text(folder.environment, json.dumps(environment, indent=2) + "\n")
    if resume:
        say(console, f"Going on after {len(told) - 1} generations." if told else "Going on from the beginning.")
    begun = time.monotonic()
    subject = make_subject(plan)
    recorder = Recorder(subject, folder, console, len(told))
    start = recorder.measure()
    settings, training = plan.config.derivative_free, plan.config.training
    found = search(
        subject.loss,
        subject.shapes,
        dimension=settings.dimension,
        population=settings.population,
        evaluations=settings.evaluations,
        sigma=float(training.lr or 1.0),
        spread=settings.spread,
        seed=training.seed,
        told=told,
        after_round=recorder,
    )
    rows = recorder.finish(found)
    told_of_run = {"start": start, "seconds": round(time.monotonic() - begun, 1)}
    return _leave(subject, folder, found, rows, told_of_run, environment, console)


def _told(folder: RunFolder) -> list[list[float]]:
    """Losses of the generations that an interrupted run has finished.

    Raises:
        StateError: the file that holds them is damaged.
    """
    if not folder.progress.is_file():
        return []
    try:
        told = json.loads(folder.progress.read_text(encoding="utf-8"))["losses"]
        return [[float(loss) for loss in generation] for generation in told]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(f'"{folder.progress}" is damaged; start the run anew with --overwrite') from error


def _leave(
    subject: Subject,
    folder: RunFolder,
    found: Found,
    rows: list[Row],
    told: dict[str, Any],
    environment: dict[str, Any],
    console: Console,
) -> dict[str, Any]:
    """Write weights, predictions, plot, card and, last, the result."""
    from safetensors.numpy import save

    plan = subject.plan
    outputs, labels = subject.answers("eval")
    write_bytes(folder.predictions, save(answers(outputs.numpy(), labels.numpy(), plan.config.task)))
    result = _summarise(plan, rows, found) | told | kept_reliability(folder)
    result["files"] = save_weights(plan, {}, folder.path)
    result["parameters"] |= count_inference(folder.path, plan.counts)
    model = "/".join(Path(plan.config.model).parts[-2:])
    plot_curves(folder, rows, plan.metric, f"CMA-ES on {model}, {len(plan.data.eval)} held out")
    write_text(folder.card, write_card(plan, result, environment["versions"], WHAT))
    write_text(folder.result, json.dumps(result, indent=2) + "\n")
    show_result(console, plan, result, folder)
    return result


def _summarise(plan: Plan, rows: list[Row], found: Found) -> dict[str, Any]:
    config, counts = plan.config, plan.counts
    return {
        "model": config.model,
        "scope": config.scope,
        "method": config.method,
        "method_args": config.method_args,
        "links": plan.links,
        "task": config.task,
        "seed": config.training.seed,
        "metric": plan.metric,
        "best": best_row(rows, plan.metric),
        "last": rows[-1],
        "saved": "last",
        "majority": plan.data.majority,
        "examples": {"train": len(plan.data.train), "eval": len(plan.data.eval)},
        "parameters": {
            "adapter": counts.adapter,
            "head": counts.head,
            "base": counts.base,
            "trainable": counts.trainable,
            "frozen": counts.frozen,
        },
        "steps": found.evaluations,
        "start_loss": found.start,
    }
