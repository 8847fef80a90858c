import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from rmlora.compare import claims


def write(path: Path, owner: claims.Owner) -> Path:
    path.write_text(json.dumps(asdict(owner)))
    return path


def test_a_claim_is_had_by_one_process_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "cell" / "claim.json"
    assert claims.take(path)
    assert claims.read_claim(path) == claims.this_process()
    assert not claims.take(path)
    claims.release(path)
    assert claims.take(path)
    assert [p.name for p in path.parent.iterdir()] == ["claim.json"]


def test_of_many_that_want_a_dead_ones_claim_one_gets_it(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    for attempt in range(20):
        path = write(tmp_path / f"{attempt}.json", replace(claims.this_process(), pid=child.pid, started=1))
        got: list[bool] = []
        threads = [threading.Thread(target=lambda path=path, got=got: got.append(claims.take(path))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == [False] * 7 + [True]


def test_a_claim_of_the_dead_of_a_zombie_or_of_a_reused_number_is_stale(tmp_path: Path) -> None:
    me = claims.this_process()
    assert claims.is_live(write(tmp_path / "mine", me))
    assert not claims.is_live(write(tmp_path / "reused", replace(me, started=me.started - 1)))
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = claims.Owner(me.host, child.pid, claims._start_of(child.pid))
    path = write(tmp_path / "child", owner)
    assert claims.is_live(path)
    assert not claims.take(path)
    child.kill()
    deadline = time.monotonic() + 30
    while claims.is_live(path) and time.monotonic() < deadline:  # not waited for: it stays as a zombie
        time.sleep(0.01)
    assert claims.take(path)
    child.wait()


def test_a_claim_that_says_nothing_is_stale(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"host": "x"}'):
        path = tmp_path / "claim.json"
        path.write_text(text)
        assert claims.take(path)
        claims.release(path)


def test_another_machines_claim_is_live_as_long_as_it_is_renewed(tmp_path: Path) -> None:
    path = write(tmp_path / "claim.json", claims.Owner("another-machine", 1, 1))
    assert not claims.take(path)
    long_ago = time.time() - 2 * claims.SILENT_SECONDS
    os.utime(path, (long_ago, long_ago))
    assert claims.take(path)


def test_somebody_elses_claim_is_not_given_back(tmp_path: Path) -> None:
    path = write(tmp_path / "claim.json", claims.Owner("another-machine", 1, 1))
    claims.release(path)
    assert path.exists()


def test_clocks_of_machines_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "claim.json", claims.Owner("another-machine", 1, 1))
    now = time.time()
    for hours in (-5, 5):
        monkeypatch.setattr(time, "time", lambda hours=hours: now + 3600 * hours)
        assert claims.is_live(path)
    os.utime(path, (now - 2 * claims.SILENT_SECONDS,) * 2)
    monkeypatch.setattr(time, "time", lambda: now - 2 * claims.SILENT_SECONDS)  # a clock that is as late as the claim
    assert not claims.is_live(path)
    assert [p.name for p in tmp_path.iterdir()] == ["claim.json"]


def test_a_process_of_another_container_is_judged_by_its_beat_and_not_by_its_number(tmp_path: Path) -> None:
    elsewhere = replace(claims.this_process(), pid=2**22 + 1, space="pid:[1]")
    path = write(tmp_path / "claim.json", elsewhere)
    assert claims.is_live(path)
    assert not claims.is_live(write(tmp_path / "here", replace(elsewhere, space=claims.this_process().space)))


def test_a_job_takes_over_from_its_earlier_life_and_from_no_other_job(tmp_path: Path) -> None:
    path = write(tmp_path / "claim.json", claims.Owner("another-machine", 1, 1, job="a-1"))
    assert not claims.take(path, "a-2")
    assert not claims.take(path)
    assert claims.take(path, "a-1")
    assert not claims.take(path, "a-1")  # it is this life's now


def test_only_the_claim_of_the_job_that_ended_is_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "claim.json", claims.Owner("another-machine", 1, 1, job="a-1"))
    assert not claims.drop(path, "a-2")
    assert path.exists()
    assert claims.drop(path, "a-1")
    assert not path.exists()
    assert not claims.drop(path, "a-1")
    assert not claims.drop(tmp_path / "no" / "claim.json", "a-1")


def test_whoever_has_lost_its_claim_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.02)
    path, lost = tmp_path / "claim.json", threading.Event()
    assert claims.take(path)
    os.utime(path, (1, 1))
    with claims.renewed(path, lost.set):
        deadline = time.monotonic() + 30
        while path.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 2
        assert not lost.is_set()
        other = write(tmp_path / "other.json", claims.Owner("another-machine", 1, 1))
        other.replace(path)
        assert lost.wait(30)
