from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rmlora.config import RunConfig
from rmlora.config_source import resolve
from rmlora.federated.settings import complete_federated
from rmlora.federated.site import Site, make_site
from tests import runs

Configure = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.save_bert(tmp_path_factory.mktemp("bert"), hidden=16)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return runs.save_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def configure(bert: Path, files: tuple[Path, Path], tmp_path: Path) -> Configure:
    """Make the configuration of a quick run: three clients, four rounds."""

    def make(output: str = "out", **changes: Any) -> RunConfig:
        base: dict[str, Any] = {
            "scope": "federated",
            "method": "lora",
            "federated": {"clients": 3, "rounds": 4, "alpha": 5.0},
            "training": {"epochs": 3, "lr": 1e-2},
        }
        for name, value in changes.items():
            base[name] = {**base.get(name, {}), **value} if isinstance(value, dict) else value
        return resolve(runs.settings(bert, files, tmp_path / output, **base))

    return make


@pytest.fixture
def site(configure: Configure) -> Callable[..., Site]:
    """Make a site of such a run."""

    def make(**changes: Any) -> Site:
        return make_site(complete_federated(configure(**changes)))

    return make
