"""Which single expert is best: each with a head of its own, judged on a part of train that no head has seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rich.console import Console

from rmlora.config import RunConfig
from rmlora.files import write_text
from rmlora.mixture.plan import prepare
from rmlora.modeling import Loaded
from rmlora.run.divergence import StopAtNan
from rmlora.run.folder import RunFolder
from rmlora.run.record import RecordEpochs
from rmlora.run.sources import Sources
from rmlora.run.trainer import make_trainer
from rmlora.run.wording import say
from rmlora.tasks.data import Examples, TaskData
from rmlora.tasks.holdout import carve

_KEY = "selection"


class HoldOut(Sources):
    """The training part of other sources, a share of it held out; their own held-out part is not looked at.

    Args:
        sources: what is divided.
        share: held out, of each class.
    """

    def __init__(self, sources: Sources, share: float) -> None:
        self.sources = sources
        self.share = share

    def data(self, config: RunConfig) -> TaskData:
        """Return the training part in two."""
        whole = self.sources.data(config)
        labels = whole.train.labels
        kept, held = carve(labels if whole.classes else [0] * len(labels), self.share, config.training.seed)
        return replace(whole, train=_pick(whole.train, kept), eval=_pick(whole.train, held), others={})

    def model(self, config: RunConfig, data: TaskData, seed: Callable[[int], None]) -> Loaded:
        """Return the model of the other sources."""
        return self.sources.model(config, data, seed)


def choose_expert(
    config: RunConfig, names: list[str], sources: Sources, folder: RunFolder, console: Console
) -> dict[str, float]:
    """Train a head on each expert alone, on one part of train, and measure it on the other.

    Each expert's score is noted in the run's progress as soon as it is known, so that a run that goes on does not
    measure it again.

    Args:
        config: complete.
        names: of the experts.
        sources: of the run.
        folder: of the run.
        console: where to say what comes out.

    Returns:
        The metric of the last epoch, by expert.
    """
    scores = read_selection(folder)
    scratch = RunFolder(folder.checkpoints / _KEY)
    training = config.training.model_copy(update={"save_every_epoch": False, "save": "last", "report_to": []})
    own = config.model_copy(update={"output": str(scratch.path), "training": training})
    for name in names:
        if name not in scores:
            shutil.rmtree(scratch.path, ignore_errors=True)
            run = prepare(own, HoldOut(sources, config.mixture.holdout), only=[name])
            make_trainer(run.plan, [StopAtNan(scratch), RecordEpochs(scratch, run.plan.metric)]).train()
            scores[name] = scratch.rows()[-1][f"eval_{run.plan.metric}"]
            write_text(folder.progress, json.dumps({_KEY: scores}, indent=2) + "\n")
            held = len(run.plan.data.eval)
            say(console, f"{name} alone: {run.plan.metric} {scores[name]:.4f} on {held} held out of train")
    shutil.rmtree(scratch.path, ignore_errors=True)
    return {name: scores[name] for name in names}


def read_selection(folder: RunFolder) -> dict[str, float]:
    """Return the scores a run has noted so far."""
    try:
        told: dict[str, Any] = json.loads(folder.progress.read_text(encoding="utf-8"))
        return {str(name): float(score) for name, score in told[_KEY].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _pick(examples: Examples, chosen: list[int]) -> Examples:
    inputs = tuple([column[i] for i in chosen] for column in examples.inputs)
    return Examples(inputs, [examples.labels[i] for i in chosen])
