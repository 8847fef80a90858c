"""One run of the classification layer alone, from a configuration to a folder with everything known about it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from rmlora.config import RunConfig
from rmlora.config_source import dump
from rmlora.files import write_text
from rmlora.heads.card import WHAT, describe_usage
from rmlora.heads.fitting import Part, fit, make_part, task_loss
from rmlora.heads.layer import Layer
from rmlora.heads.measures import measure_update
from rmlora.heads.outcome import HEAD, describe_run, summarise, write_adapter, write_head, write_predictions
from rmlora.heads.plan import HeadRun, foresee, prepare
from rmlora.heads.settings import complete_head
from rmlora.run.alone import run_alone
from rmlora.run.card import write_card
from rmlora.run.curves import plot_curves
from rmlora.run.environment import continue_environment
from rmlora.run.folder import RunFolder, open_folder
from rmlora.run.masked_updates import MaskedUpdates
from rmlora.run.plan import Described
from rmlora.run.predictions import kept_reliability
from rmlora.run.progress import epoch_line
from rmlora.run.record import Row, make_row, refuse_nan
from rmlora.run.show import show_header, show_plan, show_result
from rmlora.run.trainer import quieten
from rmlora.run.wording import say
from rmlora.tasks.calibration import measure_calibration
from rmlora.tasks.encode import head_of
from rmlora.tasks.metrics import measure


def train_head(
    config: RunConfig,
    folder: Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Adapt the classification layer alone, on features of the frozen backbone, and write the run's folder.

    The same layer would come out of passing every batch through the backbone, dropout off, in every epoch: the
    features do not change. Everything that can be wrong is checked before the folder is touched; result.json comes
    last, so that its presence means the run is whole.

    Args:
        config: with `scope: head`; W0 and the kind of features are in its section `head`.
        folder: where it is written, instead of the configuration's `output`.
        resume: do nothing if the run in the folder is finished; else start it anew, which takes seconds and gives
            what the interrupted run would have given, bit for bit, or is refused if model or data have changed.
        overwrite: replace a run that is in the folder.
        console: where to say what happens; None says nothing.

    Returns:
        What result.json holds.

    Raises:
        RmloraError: something in the configuration, data, model or folder is wrong, or training diverged.
    """

    def ready(config: RunConfig, console: Console) -> HeadRun:
        run = prepare(config, lambda text: say(console, text))
        show_header(console, run)
        return run

    def work(run: HeadRun, place: RunFolder, console: Console) -> dict[str, Any]:
        environment = describe_run(run.config, run.data)
        if resume:
            _refuse_changes(place, environment)
            say(console, "Going on from the beginning: a run of the layer alone keeps no checkpoint.")
        open_folder(place, None, overwrite)
        return _run(run, place, environment, console)

    given = config if folder is None else config.model_copy(update={"output": str(folder)})
    told: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "console": console}
    return run_alone(given, complete_head, ready, work, **told)


def dry_run_head(config: RunConfig, console: Console) -> Described:
    """Say what `train_head` would do, having read the data and run the model on one example at most; write nothing.

    Args:
        config: as for `train_head`.
        console: where to say it.

    Raises:
        RmloraError: as for `train_head`.
    """
    restore = quieten()
    try:
        told, size = foresee(config)
    finally:
        restore()
    where = f"{size.missing} examples to be computed" if size.missing else "in the cache"
    reads = f"The classification layer reads {size.d} features per example: {where}"
    show_plan(console, told, [reads])
    return told


def _run(run: HeadRun, place: RunFolder, environment: dict[str, Any], console: Console) -> dict[str, Any]:
    begun = time.monotonic()
    write_text(place.config, dump(run.config))
    write_text(place.environment, json.dumps(environment, indent=2) + "\n")
    with torch.random.fork_rng(), _one_thread():
        layer = run.draw()
        rows, outputs = _train(run, layer, console)
    place.write_rows(rows)
    write_predictions(place, outputs, run.data, run.config.task)
    write_head(place.path, layer, run.features)
    files = [HEAD, *write_adapter(place.path, layer, run.features)]
    result = summarise(run, layer, rows, time.monotonic() - begun, files) | kept_reliability(place)
    model = "/".join(Path(run.config.model).parts[-2:])
    title = f"{run.config.method} on the classification layer of {model}, {len(run.data.eval)} held out"
    plot_curves(place, rows, run.metric, title)
    write_text(place.card, write_card(run, result, environment["versions"], WHAT, describe_usage(run)))
    write_text(place.result, json.dumps(result, indent=2) + "\n")
    show_result(console, run, result, place)
    return result


def _refuse_changes(place: RunFolder, now: dict[str, Any]) -> None:
    """Refuse to go on with a run whose model or data have changed since it began."""
    if place.environment.is_file():
        continue_environment(json.loads(place.environment.read_text(encoding="utf-8")), now, step=0)


def _train(run: HeadRun, layer: Layer, console: Console) -> tuple[list[Row], Tensor]:
    """Train the layer; return a row per epoch and the held-out part's outputs after the last."""
    training = run.config.training
    train = make_part(run.features.train, run.data.train.labels, run.data, run.device)
    held_out = make_part(run.features.eval, run.data.eval.labels, run.data, run.device)
    seen = _sample(train, training.train_eval_examples, training.seed)
    rows: list[Row] = []
    last: list[Tensor] = []
    updates = MaskedUpdates(layer.handle) if layer.handle is not None else None

    @torch.no_grad()
    def record(epoch: int, step: int, loss: float) -> None:
        outputs = layer.model(held_out.features)
        found = _score(outputs, held_out, "eval", run)
        if seen is not None:
            found |= _score(layer.model(seen.features), seen, "train", run)
        state = SimpleNamespace(epoch=epoch, global_step=step, log_history=[{"loss": loss}])
        row = make_row(state, found, run.metric)
        refuse_nan(row)
        row |= measure_update(layer)
        if updates is not None:
            row["masked_share"] = updates.take()
        rows.append(row)
        say(console, epoch_line(row, run.metric, training.epochs))
        last[:] = [outputs.cpu()]

    fit(layer.model, train, training, record, around_step=_watching(updates), made=layer.bind)
    return rows, last[0]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Train on one core: the matrices are too small for two, and the result shall not depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _sample(train: Part, count: int, seed: int) -> Part | None:
    """Take the same training examples to measure the gap on as a run of the whole model would."""
    if count == 0:
        return None
    chosen = head_of(range(len(train)), count, seed)
    return train.take(torch.tensor([chosen[i] for i in range(len(chosen))]))


def _watching(updates: MaskedUpdates | None) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def step() -> Iterator[None]:
        if updates is not None:
            updates.begin_step()
        yield
        if updates is not None:
            updates.end_step()

    return step


def _score(outputs: Tensor, part: Part, name: str, run: HeadRun) -> dict[str, float]:
    logits, labels = outputs.cpu().numpy(), part.labels.cpu().numpy()
    found = measure(logits, labels, run.config.task)
    if run.data.classes is not None:
        found |= measure_calibration(logits, labels)
    return {f"{name}_loss": float(task_loss(outputs, part.labels))} | {f"{name}_{k}": v for k, v in found.items()}
