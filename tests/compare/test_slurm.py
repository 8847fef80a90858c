"""Slurm through submitit: what sbatch is told, what becomes of jobs; and whole studies on submitit's local executor."""

import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rmlora.compare import slurm_backend
from rmlora.compare.probe import Probe
from rmlora.compare.remote import Ended, Order, record_of
from rmlora.compare.rows import without_times
from rmlora.compare.running import compare
from rmlora.compare.slurm_backend import SlurmPool, open_executor
from rmlora.compare.slurm_settings import SlurmSettings, minutes_of, with_words
from rmlora.compare.store import Store
from rmlora.errors import ConfigError
from rmlora.files import write_text
from tests.compare import studies

LOCAL = {"slurm": {"executor": "local"}}
SLOW = {"epochs": 12, "batch_size": 2, "train_eval_examples": 8}


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs named as Slurm's: sbatch keeps what it is given, sacct tells what `states` says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder, "srun", "exit 1")
    program(
        folder, "sbatch", f"cp $1 {folder}/given; echo x >> {folder}/n; echo Submitted batch job $(wc -l < {folder}/n)"
    )
    program(folder, "sacct", f"echo 'JobID|State|NodeList'; cat {folder}/states")
    program(folder, "scancel", f'echo $1 >> {folder}/cancelled; echo "$1|CANCELLED by 1000|" >> {folder}/states')
    (folder / "states").write_text("")
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(slurm_backend, "_ASK_SECONDS", 0.0)
    monkeypatch.setattr(slurm_backend, "_LATE_SECONDS", 0.0)
    return folder


@pytest.fixture
def pool(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmPool:
    job = pytest.importorskip("submitit").SlurmJob
    monkeypatch.setattr(job, "watcher", type(job.watcher)())  # one for all jobs of a process, by number
    store = Store(tmp_path / "study")
    told = SlurmSettings(
        partition="gpu", account="lab", time="1-0:30:00", mem="32G", options={"constraint": "a100"}, setup=["module x"]
    )
    executor = open_executor(told, "rte", store.path / "slurm", threads=4, gpus=2)

    def order(cell: str, job: str) -> Order:
        return Order(str(store.path), ".", cell, 1, job)

    return SlurmPool(executor, store, order, Probe(str(store.path / ".probe"), ()), is_local=False)


def test_sbatch_is_told_what_a_cell_needs(pool: SlurmPool, slurm: Path) -> None:
    pool.submit("cell", "a-1")
    given = set(re.findall(r"(?m)^#SBATCH --(\S+)$", (slurm / "given").read_text()))
    wanted = {"partition=gpu", "account=lab", f"time={24 * 60 + 30}", "mem=32G", "cpus-per-task=4", "gpus-per-node=2"}
    assert wanted | {"constraint=a100", "no-requeue", "job-name=rmlora-rte"} <= given
    assert any(word.startswith("signal=USR2@") for word in given)
    assert "\nmodule x\n" in (slurm / "given").read_text()


def test_what_sbatch_refuses_is_one_line(pool: SlurmPool, slurm: Path) -> None:
    program(slurm, "sbatch", "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    with pytest.raises(ConfigError) as refused:
        pool.submit("cell", "a-1")
    assert str(refused.value) == "sbatch refused a job: sbatch: error: invalid partition specified: gpu"


@pytest.mark.parametrize(
    "state", ["PREEMPTED", "TIMEOUT", "OUT_OF_MEMORY", "CANCELLED by 1000", "NODE_FAIL", "COMPLETED"]
)
def test_a_job_that_ended_without_a_word_has_died(pool: SlurmPool, slurm: Path, state: str) -> None:
    handle = pool.submit("cell", "a-1")
    for before in ("PENDING", "RUNNING", "COMPLETING"):
        (slurm / "states").write_text(f"1|{before}|n1\n")
        assert pool.ended([handle], 0.01) == []
    (slurm / "states").write_text(f"1|{state}|n1\n1.batch|FAILED|n1\n")
    [(same, ended)] = pool.ended([handle], 0.01)
    assert same == handle
    assert not ended.had_cell
    assert ended.died == f'Slurm job 1, {state.lower()}, left no log; does its node see "{pool.store.path.resolve()}"?'


def test_what_a_job_wrote_counts_before_what_slurm_says(pool: SlurmPool, slurm: Path) -> None:
    first, second = pool.submit("one", "a-1"), pool.submit("two", "a-2")
    (slurm / "states").write_text("1|RUNNING|n1\n2|FAILED|n1\n")
    for job in ("a-1", "a-2"):
        write_text(record_of(pool.store, job), '{"had_cell": true}')
    assert pool.ended([first, second], 0.01) == [(first, Ended()), (second, Ended())]
    assert not list(pool.store.jobs.iterdir())


def test_the_last_words_of_a_dead_job_are_told(pool: SlurmPool, slurm: Path) -> None:
    handle = pool.submit("cell", "a-1")
    (slurm / "states").write_text("1|FAILED|n1\n")
    log = write_text(pool.store.path / "slurm" / "1_0_log.err", "Traceback\n\nslurmstepd: error: oom-kill\n\n")
    assert pool.ended([handle], 0.01)[0][1].died == f"Slurm job 1, failed: slurmstepd: error: oom-kill (log: {log})"


def test_without_accounting_a_job_whose_claim_fell_silent_has_died(pool: SlurmPool, slurm: Path) -> None:
    program(slurm, "sacct", "exit 1")
    handle = pool.submit("cell", "a-1")
    assert pool.ended([handle], 0.01) == []
    text = '{"host": "n1", "pid": 1, "started": 1, "job": "a-1"}'
    claim = write_text(pool.store.path / "cells" / "cell" / "claim.json", text)
    assert pool.ended([handle], 0.01) == []
    os.utime(claim, (1, 1))
    assert pool.ended([handle], 0.01)[0][1].died is not None


def test_cancelled_jobs_are_waited_for_and_no_pickle_stays(pool: SlurmPool, slurm: Path) -> None:
    handles = [pool.submit("one", "a-1"), pool.submit("two", "a-2")]
    began = time.monotonic()
    pool.cancel(handles)
    assert time.monotonic() - began < slurm_backend._CANCEL_SECONDS
    assert (slurm / "cancelled").read_text().split() == ["1", "2"]
    assert list((pool.store.path / "slurm").glob("*.pkl"))
    pool.close()
    assert not list((pool.store.path / "slurm").glob("*.pkl"))


def test_time_limits_are_read_as_sbatch_does() -> None:
    times = {"90": 90, "1:30": 1.5, "4:00:00": 240, "2-0": 2880, "1-12:30": 2190, "0-1:1:30": 61.5}
    assert {text: minutes_of(text) for text in times} == times
    for wrong in ("", "soon", "0", "1:2:3:4", "-5", "1h"):
        with pytest.raises(ValueError, match=re.escape(f'got "{wrong}"')):
            minutes_of(wrong)


def test_settings_are_refused_in_a_line(bert: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    where = (bert, files, tmp_path / "out")
    studies.assert_refused('slurm.time: write it in quotes, as "4:00:00"', *where, slurm={"time": 14400})
    studies.assert_refused(
        'unknown setting "slurm.partitoin" .did you mean "partition"', *where, slurm={"partitoin": "x"}
    )
    told = SlurmSettings(partition="cpu", mem="8G")
    assert with_words(told, ["partition=gpu", "time=30"]) == SlurmSettings(partition="gpu", mem="8G", time="30")
    for word, said in {
        "time=soon": 'slurm.time: expected a time limit such as "90"',
        "mem=lots": 'slurm.mem: expected a size such as "32G", got "lots"',
        "tme=1": r'unknown setting "tme" \(did you mean "time"\?\)',
        "partition": 'expected key=value, got "partition"',
        "executor=slrum": "executor: input should be 'slurm' or 'local'",
    }.items():
        with pytest.raises(ConfigError, match=f"^--slurm: {said}"):
            with_words(told, [word])


def test_what_the_backend_cannot_do_is_refused_before_anything_is_written(
    bert: Path, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = studies.study(bert, files, tmp_path / "out")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"backend": "slurm", "gpus": 0.5}, "--gpus 0.5: Slurm gives whole GPUs; give a whole number$"),
        ({"backend": "ray", "gpus": 1.5}, "--gpus 1.5: Ray divides single GPUs only"),
        ({"backend": "local", "gpus": 1}, "--gpus is for --backend ray and slurm"),
        ({"backend": "slurm", "workers": 0}, "--workers 0 works in this process"),
        ({"backend": "slurm", "gpus": -1}, "--gpus: expected a number of GPUs per cell, got -1"),
    ]
    for options, said in cases:
        with pytest.raises(ConfigError, match=said):
            compare(study, **options)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"^--backend slurm needs submitit: pip install 'rmlora\[slurm\]'$"):
        compare(study, backend="slurm")
    assert not (tmp_path / "out").exists()


def test_without_slurm_it_says_where_to_start(
    bert: Path, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no srun here; start on a login node, or try it with --slurm exec"):
        compare(studies.study(bert, files, tmp_path / "out"), backend="slurm")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_jobs_that_are_killed_or_told_to_stop_are_submitted_again(
    bert: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    alone = compare(studies.study(bert, files, tmp_path / "alone", methods=["lora"], training=SLOW), workers=0)
    told = studies.settings(bert, files, tmp_path / "out", methods=["lora"], training=SLOW, **LOCAL)
    study = studies.started(studies.written(tmp_path / "study.yaml", told), workers=2, backend="slurm")
    killed: dict[str, int] = {}

    def begun(cell: str) -> int:
        log = tmp_path / "out" / "cells" / cell / "log.txt"
        return log.read_text().count(" lora r=4 on pairs") if log.exists() else 0

    for number in (signal.SIGKILL, signal.SIGUSR2):  # out of memory; out of time
        found = lambda: (x for x in studies.holders(tmp_path / "out").items() if x[0] not in killed and begun(x[0]))  # noqa: E731
        cell, owner = studies.wait_for(lambda: next(found(), None))
        os.kill(owner.pid, number)
        killed[cell] = owner.pid
    said = study.communicate()[0].decode()
    assert study.returncode == 0, said
    assert without_times(studies.rows(tmp_path / "out")) == without_times(alone)
    for cell in killed:
        assert begun(cell) >= 2
    assert not list((tmp_path / "out").glob("cells/*/claim.json"))
    assert not list((tmp_path / "out" / "jobs").iterdir())


@pytest.mark.slow
def test_a_cell_that_kills_its_jobs_is_failed_and_the_others_finish(
    bert: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    told = studies.settings(bert, files, tmp_path / "out", methods=["lora"], training=SLOW, **LOCAL)
    study = studies.started(studies.written(tmp_path / "study.yaml", told), workers=2, backend="slurm", retries=1)
    bad, killed = "", set[int]()
    while study.poll() is None:
        owners = studies.holders(tmp_path / "out")
        bad = bad or next(iter(owners), "")
        if bad in owners and owners[bad].pid not in killed:
            killed.add(owners[bad].pid)
            os.kill(owners[bad].pid, signal.SIGKILL)
        time.sleep(0.01)
    said = (study.stdout.read() if study.stdout else b"").decode()
    assert len(killed) == 2
    assert re.search(r"1 of 2 cells failed, all others are finished; .* its job died 2 times without an epoch", said), (
        said
    )
    assert list(studies.times(tmp_path / "out")) != [bad]
    assert len(studies.rows(tmp_path / "out")) == 1


@pytest.mark.slow
def test_ctrl_c_leaves_no_job_and_the_same_command_goes_on(
    bert: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    import subprocess

    told = studies.settings(bert, files, tmp_path / "out", methods=["lora"], training=SLOW, **LOCAL)
    path = studies.written(tmp_path / "study.yaml", told)
    words = ["compare", str(path), "--backend", "slurm", "--workers", "2", "--threads", "1"]
    command = [sys.executable, "-m", "rmlora", *words]
    study = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    owners = studies.wait_for(lambda: studies.holders(tmp_path / "out"))
    os.killpg(study.pid, signal.SIGINT)
    said = study.communicate()[0].decode()
    assert study.returncode == 130, said
    assert "jobs were cancelled; finished cells are safe" in said
    assert f"interrupted: finished cells are safe; the same command goes on: rmlora {shlex.join(words)}" in said
    assert "Traceback" not in said
    assert not any(owner.is_running for owner in owners.values())
    assert not list((tmp_path / "out").glob("cells/*/claim.json"))
    again = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert again.returncode == 0, again.stdout.decode()
    assert len(studies.rows(tmp_path / "out")) == 2
