"""Predicting by a finished run: its held-out part or another file, by its adapter or an ensemble of its instances."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rmlora.averages import check_average
from rmlora.ensemble import Ensemble
from rmlora.errors import ConfigError
from rmlora.files import check_writable, write_text
from rmlora.run.folder import RunFolder
from rmlora.run.predicting import Judged, judge, predict_examples
from rmlora.run.reloading import Reloaded, choose_dropout, read_run, reload
from rmlora.run.trainer import quieten
from rmlora.run.wording import say


@dataclass(frozen=True)
class Wanted:
    """What to predict and how.

    Attributes:
        data: file of examples; None takes the run's held-out part.
        ensemble: instances to average; None predicts by the plain adapter.
        average: "logits" or "probabilities" of the instances; None is what the run was told, logits by default.
        chunk: instances computed at a time; None computes all at once.
        output: file of the predictions; None is predicted.jsonl in the run's folder, predicted-ensemble.jsonl of an
            ensemble.
    """

    data: str | None = None
    ensemble: int | None = None
    average: str | None = None
    chunk: int | None = None
    output: Path | None = None


def predict_run(path: Path, wanted: Wanted, console: Console | None = None) -> dict[str, Any]:
    """Predict, write one JSON object per example, and say how good the predictions are.

    Args:
        path: folder of a finished run of `rmlora train`.
        wanted: what to predict and how.
        console: where to say it; None says nothing.

    Returns:
        Every metric by name, `examples`, `output`; of unlabelled examples no metric.

    Raises:
        RmloraError: the folder, the file or the settings are wrong; nothing has been written.
    """
    console = console or Console(quiet=True)
    restore = quieten()
    try:
        _check(wanted)
        folder = RunFolder(path)
        config = read_run(folder)
        transform = choose_dropout(config, path) if wanted.ensemble is not None else None
        name = "predicted.jsonl" if wanted.ensemble is None else "predicted-ensemble.jsonl"
        output = wanted.output or path / name
        if output.is_dir():
            raise ConfigError(f'--output "{output}" is a folder; give a file')
        check_writable(output.parent)
        run = reload(folder, config, wanted.data, transform)
        model = _ensemble(run, wanted, folder) if transform is not None else run.model
        judged = judge(*predict_examples(model, run.encoded, run.processor, config), run.encoded, config)
        write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(run, judged)))
        found = _summary(run, judged) | {"examples": len(run.examples), "output": str(output)}
        _show(console, found, model)
        return found
    finally:
        restore()


def _check(wanted: Wanted) -> None:
    if wanted.ensemble is not None and wanted.ensemble < 1:
        raise ConfigError(f"--ensemble is a number of instances, 1 or more, got {wanted.ensemble}")
    if wanted.chunk is not None and wanted.chunk < 1:
        raise ConfigError(f"--chunk is a number of instances, 1 or more, got {wanted.chunk}")
    for name, value in (("--average", wanted.average), ("--chunk", wanted.chunk)):
        if value is not None and wanted.ensemble is None:
            raise ConfigError(f"{name} says how instances are averaged: give --ensemble N with it")
    if wanted.average is not None:
        check_average(wanted.average)


def _ensemble(run: Reloaded, wanted: Wanted, folder: RunFolder) -> Ensemble:
    result = json.loads(folder.result.read_text(encoding="utf-8"))
    return Ensemble(
        run.model,
        wanted.ensemble or 1,
        run.config.training.seed,
        average=wanted.average or run.config.evaluation.average,
        chunk=wanted.chunk,
        step=int(result["steps"]),
    )


def _rows(run: Reloaded, judged: Judged) -> Iterator[dict[str, Any]]:
    """One object per example, in the order of the data."""
    arrays, task = judged.arrays, run.config.task
    if task == "question-answering":
        asked = run.examples.labels
        yield from ({"id": asked[owner].id, "prediction": text} for owner, text in judged.texts.items())
        return
    for i in range(len(run.examples)):
        row: dict[str, Any] = {"example": i}
        if task == "causal-lm":
            row |= {"loss_per_token": float(arrays["values"][i]), "tokens": int(arrays["labels"][i])}
        elif run.data.classes is None:
            row["prediction"] = float(arrays["values"][i])
        else:
            names, logits = run.data.classes.names, arrays["logits"][i].astype(np.float64)
            odds = np.exp(logits - logits.max())
            row["prediction"] = str(names[int(logits.argmax())])
            row["probabilities"] = {
                str(name): round(float(p), 6) for name, p in zip(names, odds / odds.sum(), strict=True)
            }
        if run.has_labels and task != "causal-lm":
            label = arrays["labels"][i]
            row["label"] = float(label) if run.data.classes is None else str(run.data.classes.names[int(label)])
        yield row


def _summary(run: Reloaded, judged: Judged) -> dict[str, Any]:
    return dict(judged.measures) if run.has_labels else {}


def _show(console: Console, found: dict[str, Any], model: Any) -> None:
    if isinstance(model, Ensemble):
        say(console, f"Ensemble of {model.n}, average of {model.average}; {model.path}.")
    values = ", ".join(f"{name} {value:.4f}" for name, value in found.items() if isinstance(value, float))
    say(console, f"{found['examples']} examples: {values or 'no labels to compare with'}.")
    say(console, f"Predictions: {found['output']}")
