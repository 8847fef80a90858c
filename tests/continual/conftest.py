from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmlora.config import RunConfig
from tests import runs


def things(count: int, seed: int) -> list[dict[str, str]]:
    """Sentences about six things, as many of each; the label is the thing."""
    rng = np.random.default_rng(seed)
    told = [runs.THINGS[i % len(runs.THINGS)] for i in range(count)]
    return [{"text": f"the {thing} is {rng.choice(runs.COLORS)}", "label": thing} for thing in told]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny encoder, and six classes of sentences."""
    folder = tmp_path_factory.mktemp("continual")
    train = runs.write_jsonl(folder / "train.jsonl", things(36, seed=0))
    held_out = runs.write_jsonl(folder / "dev.jsonl", things(24, seed=1))
    model = runs.save_bert(folder / "model", hidden=16, layers=1)
    return {"model": str(model), "data": {"train": str(train), "eval": str(held_out), "max_length": 16}}


@pytest.fixture
def configure(sources: dict[str, Any], tmp_path: Path) -> Callable[..., RunConfig]:
    """Make the configuration of a quick run: three tasks of two classes, two epochs of three steps each."""

    def make(**changes: Any) -> RunConfig:
        settings: dict[str, Any] = {
            "scope": "continual",
            "method": "lora",
            "lora": {"r": 2, "scale": 1},
            "continual": {"tasks": 3},
            "training": {"epochs": 2, "batch_size": 4, "lr": 1e-2, "train_eval_examples": 8},
            "output": str(tmp_path / "out"),
            **sources,
        }
        for name, value in changes.items():
            settings[name] = {**settings.get(name, {}), **value} if isinstance(value, dict) else value
        return RunConfig.model_validate(settings)

    return make
