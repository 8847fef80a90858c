"""Several processes by torchrun: DDP and FSDP2, bare and through Accelerate, end where one process does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import devices, tiny

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("ddp", "fsdp2", "fsdp2_root", "accelerate", "accelerate_fsdp2")
KEPT = ("rm-lora", "sora", "lora-dropout")
TRAINED = [f"{way}/{method}/{order}" for way in WAYS for method in devices.METHODS for order in ("before", "after")]
OTHERS = [f"fsdp2/{method}/before" for method in devices.OTHERS]
INNER = [f"fsdp2_inner/rm-lora/{order}" for order in ("before", "after")]
STORED = [f"{what}/{method}" for what in ("save", "resume") for method in KEPT]
WITHOUT_GRADIENTS_TO_MASK = ("lora", "r-lora", "sora", "lora-dropout")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs the gloo backend"),
]


def start(ranks, folder, cases, *, module="tests.devices"):
    """Run cases on processes that torchrun starts; return what each of them left."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [*torchrun, "-m", module, str(folder), *cases]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    return start(request.param, tmp_path_factory.mktemp("devices"), TRAINED)


@pytest.fixture(scope="module")
def alone():
    return {method: devices.job("alone", method, "before") for method in devices.METHODS}


@pytest.mark.parametrize("case", TRAINED)
def test_every_way_ends_where_one_process_does(case, ranks, alone):
    _, method, _ = case.split("/")
    expected = alone[method]
    for found in (one[case] for one in ranks):
        assert tiny.distance(found["weights"], expected["weights"]) <= 1e-6
        assert found["masks"] == expected["masks"]
        assert found["step"] == devices.STEPS
        # Of shards it would be another: a Gram matrix of some rows is not the rows of one.
        assert found["penalties"] == pytest.approx(expected["penalties"], abs=1e-9)
        if method in devices.ON_FAST_PATH:
            assert set(found["paths"]) <= {"fused", "merged"}
    assert method in WITHOUT_GRADIENTS_TO_MASK or expected["masks"][0] != expected["masks"][1]


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return start(2, tmp_path_factory.mktemp("others"), OTHERS + INNER)


@pytest.mark.parametrize("case", OTHERS + INNER)
def test_every_method_with_factors_of_its_own_ends_under_fsdp2_where_one_process_does(case, others):
    expected = devices.job("alone", case.split("/")[1], "before")
    for found in (one[case] for one in others):
        assert tiny.distance(found["weights"], expected["weights"]) <= 1e-6
        assert found["masks"] == expected["masks"]
        assert found["step"] == devices.STEPS
    if case in INNER:
        assert all(path.startswith("reference: ") for path in found["paths"])


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    return folder, start(2, folder, STORED)


@pytest.mark.parametrize("how", ["together", "first"])
@pytest.mark.parametrize("method", KEPT)
def test_what_is_saved_under_fsdp2_is_what_one_process_saves(method, how, stored, tmp_path):
    folder, _ = stored
    model = devices.make_model()
    devices.attach(model, method)
    devices.train(*devices.wrap_alone(model, None), 0, 1)
    model.save_pretrained(tmp_path)
    saved = folder / f"{method}-{how}"
    assert {path.name for path in saved.iterdir()} == {path.name for path in tmp_path.iterdir()}
    for path in tmp_path.glob("*.safetensors"):
        one, other = load_file(path), load_file(saved / path.name)
        assert {key: value.dtype for key, value in one.items()} == {key: value.dtype for key, value in other.items()}
        assert tiny.distance(one, other) <= 1e-6


@pytest.mark.parametrize("method", KEPT)
def test_a_distributed_checkpoint_resumes_bit_for_bit_under_fsdp2(method, stored):
    for found in (one[f"resume/{method}"] for one in stored[1]):
        assert found["step"] == devices.STEPS
        assert tiny.distance(found["weights"], found["again"]) == 0.0
