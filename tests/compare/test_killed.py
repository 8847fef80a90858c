import os
import random
import signal
import time
from pathlib import Path

import pytest

from rmlora.compare import claims
from rmlora.compare.rows import without_times
from tests.compare import studies


def wait_for_work(output: Path, done: int, seconds: float = 120) -> None:
    """Return once some process holds a cell, and more cells are finished than before or are about to be."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if any(claims.is_live(path) for path in output.glob("cells/*/claim.json")):
            return
        if len(studies.times(output)) > done:
            return
        time.sleep(0.02)
    raise AssertionError("no worker took a cell")


@pytest.mark.slow
def test_killed_at_random_moments_a_study_leaves_the_rows_of_one_never_interrupted(
    bert: Path, files: tuple[Path, Path], finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    path = studies.written(tmp_path / "study.yaml", studies.settings(bert, files, output))
    rng = random.Random(7)
    for _ in range(3):
        study = studies.started(path, workers=2)
        wait_for_work(output, len(studies.times(output)))
        time.sleep(rng.uniform(0.0, 1.0))
        study.send_signal(signal.SIGKILL)
        study.communicate()
        before = studies.times(output)
    study = studies.started(path, workers=2)
    said, _ = study.communicate()
    assert study.returncode == 0, said.decode()
    assert without_times(studies.rows(output)) == without_times(studies.rows(finished))
    after = studies.times(output)
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_a_worker_ends_with_the_process_that_started_it(bert: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    slow = {"epochs": 500, "batch_size": 2, "save_every_epoch": False}
    told = studies.settings(bert, files, output, methods=["lora"], seeds=[0], training=slow)
    study = studies.started(studies.written(tmp_path / "study.yaml", told), workers=1)
    wait_for_work(output, 0)
    claim = next(output.glob("cells/*/claim.json"))
    owner = claims.read_claim(claim)
    assert owner is not None
    assert owner.pid != study.pid
    study.send_signal(signal.SIGKILL)
    study.communicate()
    deadline = time.monotonic() + 30
    while owner.is_running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not owner.is_running
    assert claims.take(claim)


@pytest.mark.parametrize("deaths", [pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)])
def test_a_worker_that_is_killed_is_replaced_and_a_cell_that_kills_two_is_given_up(
    bert: Path, files: tuple[Path, Path], tmp_path: Path, deaths: int
) -> None:
    output = tmp_path / "out"
    slow = {"epochs": 8, "batch_size": 2}
    told = studies.settings(bert, files, output, methods=["lora"], seeds=[0], training=slow)
    study = studies.started(studies.written(tmp_path / "study.yaml", told), workers=1)
    killed: set[int] = set()
    deadline = time.monotonic() + 120
    while len(killed) < deaths and time.monotonic() < deadline:
        for claim in output.glob("cells/*/claim.json"):
            owner = claims.read_claim(claim)
            if owner is not None and owner.pid not in killed and owner.is_running:
                killed.add(owner.pid)
                os.kill(owner.pid, signal.SIGKILL)
        time.sleep(0.02)
    said = study.communicate()[0].decode()
    assert (study.returncode == 0) == (deaths == 1), said
    assert len(studies.times(output)) == (1 if deaths == 1 else 0)
    if deaths == 2:
        assert "died twice (signal 9); was it out of memory?" in said
