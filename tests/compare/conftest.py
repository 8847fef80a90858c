from pathlib import Path

import pytest

from rmlora.compare.running import compare
from tests import runs
from tests.compare import studies


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return runs.save_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def finished(bert: Path, files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of four cells that was never interrupted; it is not to be changed."""
    output = tmp_path_factory.mktemp("finished") / "out"
    compare(studies.study(bert, files, output), workers=0)
    return output
