"""Attainable error against dense SVD, against every adapter that tries, and on folders of real shapes."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from rmlora.analysis.attainable import attainable_errors, errors_of, layer_gap, root_of
from rmlora.analysis.moments import input_moments
from rmlora.analysis.siblings import compare_with_full
from rmlora.errors import AdapterError


def matrix(d_out: int, d_in: int, seed: int = 0) -> Tensor:
    return torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truncated(D: Tensor, rank: int) -> Tensor:
    U, S, V = torch.linalg.svd(D, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ V[:rank]


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
def test_the_truncated_svd_attains_what_is_attainable(shape: tuple[int, int]) -> None:
    D = matrix(*shape)
    for rank, errors in attainable_errors(D, range(7)).items():
        rest = D - truncated(D, rank)
        assert errors.spectral == pytest.approx(float(torch.linalg.matrix_norm(rest, 2)), abs=1e-12)
        assert errors.frobenius == pytest.approx(float(rest.norm()), abs=1e-12)


def test_the_weighted_optimum_is_attained_too() -> None:
    D, X = matrix(6, 5), matrix(40, 5, seed=1) * torch.tensor([5.0, 2.0, 1.0, 0.5, 0.1])
    C = X.mT @ X / len(X)
    root = root_of(C)
    best = truncated(D @ root, 2) @ torch.linalg.inv(root)
    missing = (X @ (D - best).mT).square().sum(1).mean().sqrt()
    assert attainable_errors(D, [2], C)[2].weighted == pytest.approx(float(missing))
    assert errors_of(D, C).weighted == pytest.approx(float((X @ D.mT).square().sum(1).mean().sqrt()))


def test_directions_that_no_input_has_cost_nothing() -> None:
    D = matrix(4, 3)
    C = torch.diag(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    assert attainable_errors(D, [1], C)[1].weighted == pytest.approx(0.0, abs=1e-12)
    assert attainable_errors(D, [1])[1].frobenius > 0.1


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    d_out=st.integers(1, 8),
    d_in=st.integers(1, 8),
    r=st.integers(1, 5),
    scale=st.floats(-3, 3),
)
def test_no_adapter_is_better_than_attainable(seed: int, d_out: int, d_in: int, r: int, scale: float) -> None:
    D, A, B = matrix(d_out, d_in, seed), matrix(r, d_in, seed + 1), matrix(d_out, r, seed + 2)
    X = matrix(9, d_in, seed + 3)
    gap = layer_gap("q", D, A, B, scale, ranks=[0, 2], moment=X.mT @ X / 9)
    least = gap.attainable[r]
    for ours, theirs in zip(vars(gap.achieved).values(), vars(least).values(), strict=True):
        assert ours >= theirs - 1e-9
    assert gap.size == gap.attainable[0]
    assert set(gap.attainable) == {0, 2, r}


def test_a_perfect_adapter_has_no_excess() -> None:
    D = matrix(6, 5)
    U, S, V = torch.linalg.svd(D, full_matrices=False)
    gap = layer_gap("q", D, A=V[:3], B=U[:, :3] * S[:3] / 2.0, scale=2.0)
    assert gap.excess == pytest.approx(1.0)
    assert gap.achieved.spectral == pytest.approx(float(S[3]))


def test_layers_that_did_not_move_and_full_rank_are_fine() -> None:
    zero = layer_gap("q", torch.zeros(3, 3), torch.zeros(1, 3), torch.zeros(3, 1), 1.0)
    assert (zero.size.frobenius, zero.achieved.frobenius) == (0.0, 0.0)
    assert attainable_errors(matrix(3, 4), [9])[9].spectral == 0.0


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A pretrained model, its fully fine-tuned sibling with a head and a longer name, and an adapter."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    places = tuple(tmp_path / name for name in ("base", "full", "adapter"))
    for place in places:
        place.mkdir()
    tensors = {name: value.detach().clone() for name, value in base.state_dict().items()}
    save_file(tensors, places[0] / "model.safetensors")
    moved = {f"encoder.{n}": value + 0.1 * torch.randn_like(value) for n, value in tensors.items()}
    save_file(moved | {"classifier.weight": torch.zeros(2, 4)}, places[1] / "model-00001-of-00001.safetensors")
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=["0", "1"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(places[2])
    return places


def test_three_folders_give_a_line_per_layer(folders: tuple[Path, Path, Path]) -> None:
    from safetensors.torch import load_file

    gaps = compare_with_full(*folders, ranks=[1, 4], moments={"0": torch.eye(6)})
    assert [(gap.name, gap.d_out, gap.d_in, gap.r) for gap in gaps] == [("0", 5, 6, 2), ("1", 4, 5, 2)]
    base = load_file(folders[0] / "model.safetensors")
    full = load_file(folders[1] / "model-00001-of-00001.safetensors")
    adapter = load_file(folders[2] / "adapter_model.safetensors")
    for gap in gaps:
        D = full[f"encoder.{gap.name}.weight"].double() - base[f"{gap.name}.weight"].double()
        A, B = (adapter[f"base_model.model.{gap.name}.lora_{side}.weight"].double() for side in "AB")
        missing = D - 2.0 * B @ A
        assert gap.achieved.frobenius == pytest.approx(float(missing.norm()))
        assert gap.attainable[1].spectral == pytest.approx(float(torch.linalg.svdvals(D)[1]))
    assert gaps[0].achieved.weighted == pytest.approx(gaps[0].achieved.frobenius)
    assert gaps[1].achieved.weighted is None


def test_weights_kept_the_other_way_round_are_turned(tmp_path: Path, folders: tuple[Path, Path, Path]) -> None:
    from safetensors.torch import load_file

    turned = []
    for folder in folders[:2]:
        path = next(folder.glob("*.safetensors"))
        place = tmp_path / f"turned-{folder.name}"
        place.mkdir()
        tensors = {n: t.mT.contiguous() if t.ndim == 2 else t for n, t in load_file(path).items()}
        save_file(tensors, place / "model.safetensors")
        turned.append(place)
    config = folders[2] / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"fan_in_fan_out": True}))
    found = compare_with_full(*turned, folders[2])
    config.write_text(json.dumps(json.loads(config.read_text()) | {"fan_in_fan_out": False}))
    assert found == compare_with_full(*folders)


def test_folders_that_do_not_belong_together_are_a_clear_line(tmp_path: Path, folders: tuple[Path, Path, Path]) -> None:
    base, full, adapter = folders
    with pytest.raises(AdapterError, match=r"holds no .*safetensors"):
        compare_with_full(adapter.parent, full, adapter)
    other = tmp_path / "other"
    other.mkdir()
    save_file({"something.weight": torch.zeros(1)}, other / "model.safetensors")
    with pytest.raises(AdapterError, match="none of its tensors could be the weight of 0"):
        compare_with_full(other, full, adapter)
    save_file({"0.weight": torch.zeros(2, 2), "1.weight": torch.zeros(4, 5)}, other / "model.safetensors")
    with pytest.raises(AdapterError, match=r"0.weight is .2, 2., but the adapter changes 0 by .5, 6."):
        compare_with_full(base, other, adapter)
    (other / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(AdapterError, match="damaged or cut short"):
        compare_with_full(other, full, adapter)


class Encoder(nn.Module):
    """A layer behind an attention mask."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(3, 2)
        self.unused = nn.Linear(3, 2)

    def forward(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        return self.query(states) * attention_mask[..., None]


def test_moments_are_of_the_inputs_that_count() -> None:
    model = Encoder().train()
    X, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    C = input_moments(
        model,
        ["query"],
        [{"states": X[:1], "attention_mask": mask[:1]}] * 1 + [{"states": X[1:], "attention_mask": mask[1:]}],
    )["query"]
    seen = X[mask.bool()].double()
    assert torch.allclose(C, seen.mT @ seen / 4)
    assert model.training
    assert not model.query._forward_pre_hooks
    with pytest.raises(AdapterError, match=r"no module querry .did you mean .query"):
        input_moments(model, ["querry"], [])
    with pytest.raises(AdapterError, match="no input of unused"):
        input_moments(model, ["unused"], [{"states": X, "attention_mask": mask}])
