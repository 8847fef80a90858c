"""Inspecting adapter folders that PEFT wrote, against the updates PEFT itself computes."""

import json
import math

import peft
import pytest
import torch
from peft import AdaLoraConfig, LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from rmlora.analysis.adapters import inspect_adapter
from rmlora.analysis.stored import scale_of
from tests.analysis.adapter_models import Zoo, adapt, full_updates

LINEAR = ["query", "value"]


def check_against(report, updates):
    """Every module's spectrum is that of the matrix PEFT would add to the weight."""
    assert {row.name for row in report.modules} == set(updates)
    for row in report.modules:
        dW = updates[row.name].double().flatten(1)
        full = torch.linalg.svdvals(dW)
        sigma = torch.tensor(row.singular_values, dtype=torch.float64)
        torch.testing.assert_close(sigma, full[: len(sigma)], rtol=1e-5, atol=1e-5 * float(full[0]))
        assert len(sigma) == min(row.r, row.d_in, row.d_out)
        assert row.d_out * row.d_in == dW.numel()


def test_linear_conv1d_and_embedding_spectra_are_those_of_pefts_own_update(tmp_path):
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["query", "value", "conv1d", "words"])
    model = adapt(Zoo(), config)
    model.save_pretrained(tmp_path)
    report = inspect_adapter(tmp_path)
    check_against(report, full_updates(model))
    assert {row.scale for row in report.modules} == {1.5}
    words = next(row for row in report.modules if row.name == "words")
    assert (words.d_in, words.d_out) == (30, 12)


def test_convolution_spectra_are_those_of_the_flattened_update(tmp_path):
    model = adapt(Zoo(), LoraConfig(r=4, lora_alpha=8, target_modules=["image", "pixel"]))
    model.save_pretrained(tmp_path)
    check_against(inspect_adapter(tmp_path), full_updates(model))


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
def test_grouped_convolution_spectrum_is_that_of_what_it_does_to_an_image(tmp_path):
    model = adapt(Zoo(), LoraConfig(r=4, lora_alpha=4, target_modules=["grouped"]))
    model.save_pretrained(tmp_path)
    (row,) = inspect_adapter(tmp_path).modules
    layer = model.base_model.model.grouped
    patches = torch.eye(4 * 9).reshape(-1, 4, 3, 3)  # one 3 x 3 patch per input of the map
    acts = layer.lora_B["default"](layer.lora_A["default"](patches)).flatten(1).detach()
    full = torch.linalg.svdvals(acts.double())
    torch.testing.assert_close(torch.tensor(row.singular_values, dtype=torch.float64), full[:4], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rslora", [False, True])
def test_patterns_and_rslora_give_pefts_ranks_and_scales(tmp_path, rslora):
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=LINEAR,
        use_rslora=rslora,
        rank_pattern={"layers.1.query": 2, r"layers\.\d+\.value": 3},
        alpha_pattern={"query": 5, "0.value": 7, "alue": 100},
    )
    model = adapt(Zoo(), config)
    model.save_pretrained(tmp_path)
    report = inspect_adapter(tmp_path)
    check_against(report, full_updates(model))
    for row in report.modules:
        layer = model.base_model.model.get_submodule(row.name)
        assert row.r == layer.r["default"]
        assert row.scale == layer.scaling["default"]


@pytest.mark.parametrize("key", ["q", "layer.0.q", "r.0.q", r"layer\.[0-4]\.q", ".*", "k|q", "0.q$", "^layer", "x[0]"])
@pytest.mark.parametrize("name", ["layer.0.q", "q", "layer.10.qq", "x[0]", "a.layer.0.q"])
def test_patterns_match_exactly_where_pefts_do(key, name):
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "rank_pattern": {key: 2}, "alpha_pattern": {key: 3}}
    hit = get_pattern_key([key], name) == key
    assert scale_of(name, config) == ((2, 3 / 2) if hit else (4, 1.0))


def test_adalora_folds_its_values_and_keeps_the_scale_of_its_first_rank(tmp_path):
    config = AdaLoraConfig(init_r=6, target_r=3, lora_alpha=8, target_modules=LINEAR, total_step=10, tinit=1, tfinal=1)
    model = adapt(Zoo(), config)
    check_saved_adalora(model, tmp_path / "whole")
    names = [f"layers.{i}.{part}.lora_E" for i in range(2) for part in LINEAR]
    kept = [[True, False, True, False, True, False], [True] * 6, [False] * 6, [False, True, True, True, False, False]]
    model.peft_config["default"].rank_pattern = dict(zip(names, kept, strict=True))
    for name, mask in zip(names, kept, strict=True):  # what pruning does to the live model
        layer = model.base_model.model.get_submodule(name.removesuffix(".lora_E"))
        layer.lora_E["default"].data[~torch.tensor(mask)] = 0
    check_saved_adalora(model, tmp_path / "pruned")


def check_saved_adalora(model, folder):
    updates = full_updates(model)
    model.save_pretrained(folder)
    report = inspect_adapter(folder)
    for row in report.modules:
        full = torch.linalg.svdvals(updates[row.name].double())
        sigma = torch.zeros_like(full)
        sigma[: len(row.singular_values)] = torch.tensor(row.singular_values, dtype=torch.float64)
        torch.testing.assert_close(sigma, full, rtol=1e-5, atol=1e-6)
    assert any("lora_E" in note for note in report.notes)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(3, 8, 10))
        self.router = nn.Linear(8, 3)

    def forward(self, x):
        return torch.einsum("bi,eio->beo", x, self.gate_up).sum(1) + self.router(x).sum(-1, keepdim=True)


def test_stacked_expert_parameters_give_one_row_per_expert(tmp_path):
    model = nn.Sequential()
    model.add_module("moe", Experts())
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["router"], target_parameters=["moe.gate_up"])
    adapted = adapt(model, config)
    adapted.save_pretrained(tmp_path)
    report = inspect_adapter(tmp_path)
    wrapped = adapted.base_model.model.moe
    dW = wrapped.get_delta_weight("default").detach().double()
    experts = [row for row in report.modules if row.name.startswith("moe[")]
    assert [row.name for row in experts] == ["moe[0]", "moe[1]", "moe[2]"]
    for row, expert in zip(experts, dW, strict=True):
        sigma = torch.tensor(row.singular_values, dtype=torch.float64)
        torch.testing.assert_close(sigma, torch.linalg.svdvals(expert)[:2], rtol=1e-5, atol=1e-6)
    assert "moe.router" in {row.name for row in report.modules}


def test_dora_heads_and_biases_are_named_as_not_measured(tmp_path):
    config = LoraConfig(
        r=2, target_modules=LINEAR, use_dora=True, modules_to_save=["head"], init_lora_weights="gaussian"
    )
    adapt(Zoo(), config).save_pretrained(tmp_path)
    notes = " ".join(inspect_adapter(tmp_path).notes)
    assert "DoRA rescales" in notes
    assert "4 tensors of kind lora_magnitude_vector" in notes
    assert "2 tensors of kind modules_to_save and other" in notes


def test_an_initialisation_that_moves_the_base_is_named(tmp_path):
    adapt(Zoo(), LoraConfig(r=2, target_modules=LINEAR, init_lora_weights="olora")).save_pretrained(tmp_path)
    assert any("olora" in note and "base" in note for note in inspect_adapter(tmp_path).notes)


def test_an_untrained_adapter_is_zero_and_not_nan(tmp_path):
    from peft import get_peft_model

    get_peft_model(Zoo(), LoraConfig(r=4, target_modules=LINEAR)).save_pretrained(tmp_path)
    report = inspect_adapter(tmp_path)
    for row in report.modules:
        assert (row.rank, row.stable_rank, row.effective_rank) == (0, 0, 0)
        assert row.B_residual.total == 4
        assert row.orthogonality_excess == 4
    assert all(math.isfinite(value) for value in report.totals().values())


def test_bf16_adapters_are_read_and_rank_keeps_a_usable_tolerance(tmp_path):
    model = adapt(Zoo(), LoraConfig(r=4, target_modules=LINEAR)).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "adapter_model.safetensors").popitem()[1].dtype == torch.bfloat16
    for row in inspect_adapter(tmp_path).modules:
        assert row.dtype == "bfloat16"
        assert row.rank == 4
        assert row.tolerance < 1e-4


def test_real_architecture_keeps_natural_order_and_serialises(tmp_path):
    tiny = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=11, num_attention_heads=2, intermediate_size=24)
    model = adapt(
        BertForSequenceClassification(tiny), LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS")
    )
    model.save_pretrained(tmp_path)
    report = inspect_adapter(tmp_path)
    check_against(report, full_updates(model))
    layers = [int(row.name.split("layer.")[1].split(".")[0]) for row in report.modules if "layer." in row.name]
    assert layers == sorted(layers)
    assert len(set(layers)) == 11
    as_json = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert as_json["totals"]["modules"] == len(report.modules) == len(as_json["modules"])
    adapter = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert as_json["totals"]["parameters"] == adapter
    first = as_json["modules"][0]
    assert first["A_residual"]["total"] == first["A_residual"]["norm"] + first["A_residual"]["overlap"]
    loss = first["orthogonality_excess"] + first["orthogonality_floor"]
    assert first["orthogonality_loss"] == pytest.approx(loss)


def test_keys_without_pefts_prefix_are_read_too(tmp_path):
    adapt(Zoo(), LoraConfig(r=2, target_modules=LINEAR)).save_pretrained(tmp_path)
    before = inspect_adapter(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({key.removeprefix("base_model.model."): tensor for key, tensor in load_file(file).items()}, file)
    assert inspect_adapter(tmp_path) == before


def test_multihead_attention_gives_both_its_projections(tmp_path):
    model = nn.Sequential()
    model.add_module("mha", nn.MultiheadAttention(12, 2))
    adapted = adapt(model, LoraConfig(r=3, lora_alpha=6, target_modules=["mha"]))
    adapted.save_pretrained(tmp_path)
    inner = adapted.base_model.model.mha
    outer = inner.base_layer.out_proj
    updates = {"mha": inner.get_delta_weight("default"), "mha.out_proj": outer.get_delta_weight("default")}
    check_against(inspect_adapter(tmp_path), {name: update.detach() for name, update in updates.items()})


@pytest.mark.skipif(not hasattr(peft, "KasaConfig"), reason="this PEFT has no KaSA")
def test_kasa_folds_the_values_it_keeps_between_the_factors(tmp_path):
    model = adapt(Zoo(), LoraConfig(r=3, lora_alpha=6, target_modules=LINEAR, kasa_config=peft.KasaConfig()))
    model.save_pretrained(tmp_path)
    updates = {}
    for name in full_updates(model):
        layer = model.base_model.model.get_submodule(name)
        A, B, values = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.lora_diag["default"]
        updates[name] = 2 * (B @ torch.diag(values) @ A).detach()
    check_against(inspect_adapter(tmp_path), updates)
