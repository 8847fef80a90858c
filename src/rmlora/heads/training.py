"""One run of the classification layer alone, from a configuration to a folder with everything known about it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rmlora.config import RunConfig
from rmlora.config_source import dump
from rmlora.files import check_writable, write_text
from rmlora.heads.features import Features, load_features
from rmlora.heads.fitting import Part, fit, make_part, task_loss
from rmlora.heads.layer import Layer, make_layer
from rmlora.heads.measures import measure_update
from rmlora.heads.outcome import HEAD, describe_run, summarise, write_adapter, write_head, write_predictions
from rmlora.heads.settings import complete_head
from rmlora.run.choice import choose_method
from rmlora.run.folder import RunFolder
from rmlora.run.masked_updates import MaskedUpdates
from rmlora.run.record import Row, make_row, refuse_nan
from rmlora.run.trainer import quieten
from rmlora.tasks.calibration import expected_calibration_error
from rmlora.tasks.data import TaskData, load_data
from rmlora.tasks.encode import head_of
from rmlora.tasks.metrics import choose_metric, measure


@dataclass(frozen=True, eq=False)
class HeadRun:
    """A run, ready to start.

    Attributes:
        config: complete.
        data: examples, checked.
        features: what the layer reads.
        metric: decides the best epoch.
        device: where the layer is trained.
    """

    config: RunConfig
    data: TaskData
    features: Features
    metric: str
    device: torch.device

    @property
    def outputs(self) -> int:
        """Classes, or 1 for a regression."""
        return 1 if self.data.classes is None else len(self.data.classes)


def train_head(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Adapt the classification layer alone, on features of the frozen backbone, and write the run's folder.

    The same layer would come out of passing every batch through the backbone, dropout off, in every epoch: the
    features do not change. Everything that can be wrong is checked before the folder is touched; result.json comes
    last, so that its presence means the run is whole.

    Args:
        config: with `scope: head`; W0 and the kind of features are in its section `head`.
        folder: made if missing; files of a run that lie there are replaced, others left alone.

    Returns:
        What result.json holds.

    Raises:
        RmloraError: something in the configuration, data, model or folder is wrong, or training diverged.
    """
    run = prepare(config)
    check_writable(folder)
    place = RunFolder(folder)
    for old in (place.result, place.metrics, place.predictions):
        old.unlink(missing_ok=True)
    begun = time.monotonic()
    write_text(place.config, dump(run.config))
    write_text(place.environment, json.dumps(describe_run(run.config, run.data), indent=2) + "\n")
    with torch.random.fork_rng(), _one_thread():
        torch.manual_seed(run.config.training.seed)
        layer = make_layer(run.config, run.features.train.shape[1], run.outputs).to(run.device)
        rows, outputs = _train(run, layer)
    place.write_rows(rows)
    write_predictions(place, outputs, run.data, run.config.task)
    write_head(folder, layer, run.features)
    files = [HEAD, *write_adapter(folder, layer)]
    result = summarise(run.config, run.data, layer, rows, run.metric, run.features, time.monotonic() - begun, files)
    write_text(place.result, json.dumps(result, indent=2) + "\n")
    return result


def prepare(config: RunConfig) -> HeadRun:
    """Check a configuration, read its data, and have the features in the cache; nothing else is written.

    Args:
        config: with `scope: head`.

    Raises:
        RmloraError: whatever would stop the run later.
    """
    config = complete_head(config)
    choose_method(config).build(**config.method_args)
    data = load_data(config.data, config.task, config.training.seed)
    outputs = 1 if data.classes is None else len(data.classes)
    metric = choose_metric(config.training.metric, config.task, outputs)
    restore = quieten()
    try:
        features = load_features(config, data)
    finally:
        restore()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return HeadRun(config, data, features, metric, device or torch.device("cpu"))


def _train(run: HeadRun, layer: Layer) -> tuple[list[Row], Tensor]:
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
        last[:] = [outputs.cpu()]

    fit(layer.model, train, training, record, around_step=_watching(updates))
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
        found["ece"] = expected_calibration_error(logits, labels)
    return {f"{name}_loss": float(task_loss(outputs, part.labels))} | {f"{name}_{k}": v for k, v in found.items()}
