from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rmlora.federated.exchange as exchanging
from rmlora.config import RunConfig
from rmlora.config_source import resolve
from rmlora.federated.averaging import Update
from rmlora.federated.client import train_client
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


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[tuple[int, int], str]]:
    """Faults by (round, client), to be filled in: "dies", "nan", "shape"."""
    faults: dict[tuple[int, int], str] = {}

    def train(site: Any, number: int, client: int, sent: Any) -> Update:
        fault = faults.get((number, client))
        if fault == "dies":
            raise RuntimeError("the machine\nis gone")
        update = train_client(site, number, client, sent)
        name, tensor = next(iter(update.state.items()))
        if fault == "nan":
            return replace(update, state=update.state | {name: torch.full_like(tensor, float("nan"))})
        if fault == "shape":
            return replace(update, state=update.state | {name: tensor[:1]})
        return update

    monkeypatch.setattr(exchanging, "train_client", train)
    return faults
