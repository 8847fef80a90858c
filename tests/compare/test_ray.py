import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rmlora.compare.rows import without_times
from rmlora.compare.running import compare
from rmlora.errors import ConfigError
from tests.compare import studies


@pytest.mark.slow
def test_a_ray_cluster_of_two_workers_leaves_the_rows_of_the_local_backend(
    bert: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    rates = {"learning_rates": [1e-3, 1e-2], "seeds": [0]}
    local = compare(studies.study(bert, files, tmp_path / "local", **rates), workers=0)
    told = studies.settings(bert, files, tmp_path / "ray", **rates)
    study = studies.started(studies.written(tmp_path / "study.yaml", told), workers=2, backend="ray")
    said = study.communicate()[0].decode()
    assert study.returncode == 0, said
    assert len(local) == 6
    assert without_times(studies.rows(tmp_path / "ray")) == without_times(local)
    before = studies.times(tmp_path / "ray")
    study = studies.started(tmp_path / "study.yaml", workers=2, backend="ray")
    study.communicate()
    assert (study.returncode, studies.times(tmp_path / "ray")) == (0, before)


def test_without_ray_the_backend_is_refused_in_a_line(
    bert: Path, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'rmlora\[ray\]'"):
        compare(studies.study(bert, files, tmp_path / "out"), workers=1, backend="ray")


def test_an_address_at_which_nobody_listens_is_refused_before_anything_is_written(
    bert: Path, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f'no Ray cluster answers at RAY_ADDRESS="{address}": Connection refused'):
        compare(studies.study(bert, files, tmp_path / "out"), backend="ray")
    assert not (tmp_path / "out").exists()
