"""What a run measures of the adapter over training, against dense matrices and hand-made moves."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import rmlora
from rmlora.analysis.adapters import inspect_adapter
from rmlora.config_source import resolve
from rmlora.run.masked_updates import MaskedUpdates
from rmlora.run.record import measure_adapter
from rmlora.train import train
from tests import runs


def small_model(r: int = 4) -> nn.Module:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 6))
    model = get_peft_model(base, LoraConfig(r=r, lora_alpha=2 * r, target_modules=["0", "1"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def test_what_is_measured_agrees_with_dense_matrices() -> None:
    handle = rmlora.attach(small_model(), rmlora.lora())
    row = measure_adapter(handle)
    dense = [pair.scale * (pair.B.detach() @ pair.A.detach()).double() for pair in handle.pairs]
    losses = [float(((W @ W.T - torch.eye(len(W))) ** 2).sum()) for W in dense]
    assert row["orthogonality_loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert row["orthogonality_floor"] == pytest.approx(((8 - 4) + (6 - 4)) / 2)
    assert row["orthogonality_excess"] == pytest.approx(row["orthogonality_loss"] - row["orthogonality_floor"])
    assert row["rank"] == 4
    assert row["rank_tolerance"] == pytest.approx(torch.finfo(torch.float32).eps * 10)
    stable = [float((W.norm() / torch.linalg.matrix_norm(W, 2)) ** 2) for W in dense]
    assert row["stable_rank"] == pytest.approx(sum(stable) / 2, rel=1e-5)


@pytest.mark.parametrize("method", ["lora", "sora", "adalora"])
def test_what_the_record_says_of_dW_is_what_inspect_says_of_the_saved_adapter(
    method: str, tmp_path: Path, bert: Path, files: tuple[Path, Path]
) -> None:
    knobs = {"sora": {"threshold": 0.1}}.get(method, {})  # shuts gates within ten steps
    training = {"epochs": 4 if method == "adalora" else 2, "lr": 1e-2}
    train(resolve(runs.settings(bert, files, tmp_path / "out", method=method, method_args=knobs, training=training)))
    last = runs.rows(tmp_path / "out")[-1]
    modules = inspect_adapter(tmp_path / "out").modules
    of_saved = {
        name: sum(getattr(module, name) for module in modules) / len(modules)
        for name in ("rank", "effective_rank", "stable_rank", "orthogonality_loss", "orthogonality_floor")
    }
    assert {name: last[name] for name in of_saved} == pytest.approx(of_saved, rel=1e-5)
    assert last["rank_tolerance"] == max(module.tolerance for module in modules)
    assert (last["rank"] < max(module.r for module in modules)) == (method != "lora"), "pruned directions count"


def test_gates_scale_what_is_measured_of_dW_and_not_the_penalty() -> None:
    bare = measure_adapter(rmlora.attach(small_model(), rmlora.lora()))
    gated = measure_adapter(rmlora.attach(small_model(), rmlora.sora()))  # gates are drawn from N(0, 1)
    assert gated["penalty"] == bare["penalty"]
    assert gated["effective_rank"] != pytest.approx(bare["effective_rank"], rel=1e-3)
    ones = measure_adapter(rmlora.attach(small_model(), rmlora.sora(start="ones")))
    assert ones == bare


def test_no_adapter_no_row() -> None:
    assert measure_adapter(None) == {}


def test_the_masked_share_is_that_of_the_moves_made() -> None:
    handle = rmlora.attach(small_model(), rmlora.gm_lora(directions=1))
    updates = MaskedUpdates(handle)
    updates.begin_step()
    with torch.no_grad():
        for pair in handle.pairs:
            pair.parameters[0].add_(1.0)  # every direction moves alike, and 3 of 4 are masked
    updates.end_step()
    assert updates.take() == pytest.approx(0.75)
    assert updates.take() is None


def test_without_masks_there_is_no_share() -> None:
    updates = MaskedUpdates(rmlora.attach(small_model(), rmlora.lora()))
    updates.begin_step()
    updates.end_step()
    assert updates.take() is None


def test_adamw_moves_masked_directions_unless_told_not_to(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    shares = {}
    for policy in ("gradient", "update"):
        settings = {"method": "gm-lora", "method_args": {"directions": 2, "policy": policy}}
        train(resolve(runs.settings(bert, files, tmp_path / policy, **settings)))
        rows = [json.loads(line) for line in (tmp_path / policy / "metrics.jsonl").read_text().splitlines()]
        shares[policy] = [row["masked_share"] for row in rows]
        assert all(0 <= row[f"{part}_ece"] <= 1 for row in rows for part in ("train", "eval"))
    assert shares["update"] == [0.0, 0.0]
    assert all(0.05 < share < 0.95 for share in shares["gradient"])
