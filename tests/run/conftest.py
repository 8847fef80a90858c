from pathlib import Path

import pytest

from tests import runs


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return runs.save_pairs(tmp_path_factory.mktemp("pairs"))
