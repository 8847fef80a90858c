"""Continual runs small enough for a test: six classes of sentences, three tasks."""

from pathlib import Path
from typing import Any

import numpy as np

from rmlora.config import RunConfig
from tests import runs


def things(count: int, seed: int) -> list[dict[str, str]]:
    """Sentences about six things, as many of each; the label is the thing."""
    rng = np.random.default_rng(seed)
    told = [runs.THINGS[i % len(runs.THINGS)] for i in range(count)]
    return [{"text": f"the {thing} is {rng.choice(runs.COLORS)}", "label": thing} for thing in told]


def quick(sources: dict[str, Any], place: Path, **changes: Any) -> RunConfig:
    """The configuration of a quick run: three tasks of two classes, two epochs of three steps each."""
    settings: dict[str, Any] = {
        "scope": "continual",
        "method": "lora",
        "lora": {"r": 2, "scale": 1},
        "continual": {"tasks": 3},
        "training": {"epochs": 2, "batch_size": 4, "lr": 1e-2, "train_eval_examples": 8},
        "output": str(place),
        **sources,
    }
    for name, value in changes.items():
        settings[name] = {**settings.get(name, {}), **value} if isinstance(value, dict) else value
    return RunConfig.model_validate(settings)
