from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rmlora.config import RunConfig
from tests import runs


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of features for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rmlora" / "features"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Model and data of a run on texts and of one on images."""
    folder = tmp_path_factory.mktemp("sources")
    files = runs.save_pairs(folder)
    images = runs.save_digits(folder / "digits.npz")
    texts = {"train": str(files[0]), "eval": str(files[1]), "max_length": 16}
    return {
        "text": {"model": str(runs.save_bert(folder / "bert")), "data": texts},
        "image": {
            "model": str(runs.save_vit(folder / "vit")),
            "task": "image-classification",
            "data": {"train": str(images)},
        },
    }


@pytest.fixture
def configure(sources: dict[str, dict[str, Any]]) -> Callable[..., RunConfig]:
    """Make the configuration of a quick run: two epochs."""

    def make(kind: str = "text", **changes: Any) -> RunConfig:
        settings: dict[str, Any] = {
            "scope": "head",
            "method": "lora",
            "lora": {"r": 2, "lora_alpha": 2},
            "training": {"epochs": 2, "batch_size": 8, "lr": 1e-2},
            **sources[kind],
        }
        for name, value in changes.items():
            settings[name] = {**settings.get(name, {}), **value} if isinstance(value, dict) else value
        return RunConfig.model_validate(settings)

    return make
