from pathlib import Path

import pytest

from rmlora.config_source import resolve
from rmlora.train import train
from tests import runs


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.save_bert(tmp_path_factory.mktemp("mixture") / "bert")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return runs.save_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory, bert: Path, files: tuple[Path, Path]) -> list[str]:
    """Two adapters of different ranks, as `rmlora train` leaves them."""
    folder = tmp_path_factory.mktemp("experts")
    for name, r in (("same", 4), ("half", 2)):
        quick = {"epochs": 1, "lr": 2e-2, "train_eval_examples": 0, "save_every_epoch": False, "seed": r}
        changes = {"method": "lora", "lora": {"r": r}, "training": quick}
        train(resolve(runs.settings(bert, files, folder / name, **changes)))
    return [str(folder / "same"), str(folder / "half")]
