import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rmlora.compare.rows import without_times
from rmlora.compare.running import compare
from rmlora.errors import RmloraError
from rmlora.run.faults import DiskFullError
from tests.compare import studies


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_every_finished_cell_is_safe(
    bert: Path, files: tuple[Path, Path], finished: Path, small_disk: Path
) -> None:
    output = small_disk / "out"
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(650 * 1024))
    study = studies.study(bert, files, output)
    with pytest.raises(RmloraError, match=r"no space left|No space left") as full:
        compare(study, workers=0)
    assert "\n" not in str(full.value)
    assert 0 < len(studies.times(output)) < 4
    before = studies.times(output)
    assert not list(output.glob("cells/*/failed.json"))
    ballast.unlink()
    rows = compare(study, workers=0)
    assert without_times(rows) == without_times(studies.rows(finished))
    after = studies.times(output)
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_workers_report_a_full_disk_and_the_study_stops(bert: Path, files: tuple[Path, Path], small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(920 * 1024))
    path = studies.written(small_disk.parent / "s.yaml", studies.settings(bert, files, small_disk / "out"))
    study = studies.started(path, workers=1)
    said = study.communicate()[0].decode()
    assert study.returncode == 1
    assert "DiskFullError: no space left in" in said or "No space left on device" in said
    assert not list(small_disk.glob("out/cells/*/failed.json"))


@pytest.mark.slow
def test_an_error_while_writing_that_comes_from_a_full_disk_stops_the_study(
    bert: Path, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    study = studies.study(bert, files, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("rmlora.train.save_weights", full)
        with pytest.raises(DiskFullError, match="every finished cell is safe; make room and start again"):
            compare(study, workers=0)
    assert not list((tmp_path / "out").glob("cells/*/failed.json"))
    assert len(compare(study, workers=0)) == 4
