import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

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
