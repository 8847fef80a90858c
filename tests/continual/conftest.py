from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rmlora.config import RunConfig
from tests import runs
from tests.continual.quick import quick, things


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
    """Make the configuration of a quick run into the test's own folder."""
    return partial(quick, sources, tmp_path / "out")
