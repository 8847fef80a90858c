"""Whole studies through sbatch, srun and sacct: programs of these names that run jobs on this machine."""

import os
import signal
from pathlib import Path

import pytest

from rmlora.compare.rows import without_times
from rmlora.compare.running import compare
from tests.compare import studies

SLOW = {"epochs": 12, "batch_size": 2, "train_eval_examples": 8}

SBATCH = """
at={folder}; echo x >> $at/n; n=$(wc -l < $at/n | tr -d " ")
cp "$1" $at/job-$n.sh; echo "$n|RUNNING|n1" >> $at/states
(SLURM_JOB_ID=$n bash $at/job-$n.sh && how=COMPLETED || how=FAILED; echo "$n|$how|n1" >> $at/states) >/dev/null 2>&1 &
echo "Submitted batch job $n"
"""
SRUN = """
out=$(echo "$3" | sed "s/%j/$SLURM_JOB_ID/; s/%t/0/"); err=$(echo "$5" | sed "s/%j/$SLURM_JOB_ID/; s/%t/0/")
[ "$1 $2 $4" = "--unbuffered --output --error" ] || exit 9
shift 5; export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_NTASKS=1 SLURM_NNODES=1
exec "$@" >> "$out" 2>> "$err"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("submitit")
    folder = tmp_path / "bin"
    folder.mkdir()
    sacct = "echo 'JobID|State|NodeList'; cat {folder}/states"
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": sacct, "scancel": "exit 0"}.items():
        (folder / name).write_text("#!/bin/sh\n" + text.replace("{folder}", str(folder)))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def told_states(slurm: Path) -> list[str]:
    return [line.split("|")[1] for line in (slurm / "states").read_text().splitlines()]


@pytest.mark.slow
def test_a_study_of_slurm_jobs_leaves_the_rows_of_one_on_this_machine(
    slurm: Path, bert: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    alone = compare(studies.study(bert, files, tmp_path / "alone", methods=["lora"], training=SLOW), workers=0)
    told = studies.settings(bert, files, tmp_path / "out", methods=["lora"], training=SLOW)
    study = studies.started(studies.written(tmp_path / "study.yaml", told), workers=2, backend="slurm")
    owner = studies.wait_for(lambda: next(iter(studies.holders(tmp_path / "out").values()), None))
    os.kill(owner.pid, signal.SIGKILL)
    said = study.communicate()[0].decode()
    assert study.returncode == 0, said
    assert without_times(studies.rows(tmp_path / "out")) == without_times(alone)
    states = studies.wait_for(lambda: found if len(found := told_states(slurm)) == 6 else [])
    assert sorted(states) == ["COMPLETED"] * 2 + ["FAILED"] + ["RUNNING"] * 3
    assert not list((tmp_path / "out" / "jobs").iterdir())
