"""A process of a job is killed: torchrun starts it again, and it ends at the bits of a job that nothing happened to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import runs

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs the gloo backend"),
]


def start(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    # Without it the new processes may read from torchrun's store where the dead one listened.
    fresh_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | fresh_store
    command = [*torchrun, "--max-restarts", "1", "-m", module, "train", "run.yaml", "--resume", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_killed_worker_restarts_the_job_from_its_checkpoint_bit_for_bit(tmp_path, monkeypatch):
    runs.settle(tmp_path, monkeypatch)
    words = ["epochs=2", "batch_size=4", "--weight", "1e-2"]
    killed = start("tests.dying", *words, "output=killed")
    assert killed.returncode == 0, killed.stderr
    assert "Going on from checkpoint-5" in killed.stdout
    assert "SIGKILL" in killed.stderr or "exitcode: -9" in killed.stderr

    straight = start("rmlora", *words, "output=straight")
    assert straight.returncode == 0, straight.stderr
    assert "Going on from the beginning" in straight.stdout
    one, other = tmp_path / "straight", tmp_path / "killed"
    assert runs.equal(runs.weights(one), runs.weights(other))
    assert [row["step"] for row in runs.rows(other)] == [row["step"] for row in runs.rows(one)] == [5, 10]
    assert [row["eval_loss"] for row in runs.rows(other)] == [row["eval_loss"] for row in runs.rows(one)]
