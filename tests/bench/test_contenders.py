"""What is compared: one set of frozen weights, one batch, and steps that differ only in what they should."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rmlora.bench.base_model import build_base, make_batch
from rmlora.bench.contenders import Contender, adapted_modules, make_contender
from rmlora.bench.settings import CONTENDERS, BenchSettings
from rmlora.bench.subjects import SUBJECTS, Subject, choose_subjects
from rmlora.bench.timing import measure_rounds
from tests.bench.folders import HEADS, save_config

SETTINGS = BenchSettings(r=4, directions=2, weight=1e-3, batch=2, length=8)


def subject(folder: Path, name: str) -> Subject:
    return choose_subjects(str(save_config(folder / name, name)))[0]


def everyone(base: nn.Module, settings: BenchSettings = SETTINGS) -> list[Contender]:
    return [make_contender(name, base, settings) for name in settings.contenders]


@pytest.mark.parametrize("name", HEADS)
def test_every_contender_steps_on_the_same_frozen_weights_and_begins_with_the_same_loss(
    tmp_path: Path, name: str
) -> None:
    one = subject(tmp_path, name)
    base, batch = build_base(one, SETTINGS), make_batch(one, SETTINGS)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    contenders = everyone(base)
    frozen = {id(parameter) for parameter in base.parameters()}
    for contender in contenders:
        own = [parameter for parameter in contender.model.parameters() if id(parameter) not in frozen]
        assert frozen <= {id(parameter) for parameter in contender.model.parameters()}
        assert all(parameter.requires_grad for parameter in own)
        assert bool(own) == (contender.name != "floor")
        assert not any(isinstance(m, nn.Dropout) and m.p > 0 for m in contender.model.modules())
        assert contender.model.training
    losses = [row["loss"] for row in measure_rounds(contenders, batch, 1)]
    assert max(losses) - min(losses) < 1e-5
    after = base.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in base.parameters())


def test_the_floor_sends_gradients_through_every_layer_and_to_no_weight(tmp_path: Path) -> None:
    one = subject(tmp_path, "bert")
    floor = make_contender("floor", build_base(one, SETTINGS), SETTINGS)
    reached = []
    for layer in floor.model.bert.encoder.layer:
        layer.register_full_backward_hook(lambda module, grads, outputs: reached.append(grads[0]))
    floor.step(make_batch(one, SETTINGS))
    assert len(reached) == 2
    assert all(grad.abs().sum() > 0 for grad in reached)


def test_only_the_contender_that_steps_pays_for_its_hooks(tmp_path: Path) -> None:
    one = subject(tmp_path, "bert")
    rows = list(measure_rounds(everyone(build_base(one, SETTINGS)), make_batch(one, SETTINGS), 3))
    assert len(rows) == 3 * len(CONTENDERS)
    for row in rows:
        inside = row["hooks_s"]
        assert (inside is not None) == (row["contender"] in ("reference", "rmlora"))
        assert inside is None or 0 < inside <= row["seconds"]
    for index in range(3):
        assert sorted(row["position"] for row in rows if row["round"] == index) == [0, 1, 2, 3]


def test_the_methods_step_counts_and_the_directions_are_those_asked_for(tmp_path: Path) -> None:
    one = subject(tmp_path, "deberta")
    contenders = everyone(build_base(one, SETTINGS))
    list(measure_rounds(contenders, make_batch(one, SETTINGS), 2))
    for handle in (contender.handle for contender in contenders if contender.handle is not None):
        assert handle.step == 2
        assert {len(rows) for rows, _ in handle.kept().values()} == {2}


@pytest.mark.parametrize(("dtype", "autocast"), [("bfloat16", False), ("float32", True), ("bfloat16", True)])
def test_in_bfloat16_the_adapters_stay_in_float32_as_peft_has_them(tmp_path: Path, dtype: str, autocast: bool) -> None:
    settings = BenchSettings(r=4, batch=2, length=8, dtype=dtype, autocast=autocast)
    one = subject(tmp_path, "bert")
    base = build_base(one, settings)
    contenders = everyone(base, settings)
    assert {parameter.dtype for parameter in base.parameters()} == {getattr(torch, dtype)}
    for contender in contenders[1:]:
        learning = [parameter for parameter in contender.model.parameters() if parameter.requires_grad]
        assert {parameter.dtype for parameter in learning} == {torch.float32}
    assert all(row["loss"] == row["loss"] for row in measure_rounds(contenders, make_batch(one, settings), 2))


def test_every_projection_of_the_blocks_is_adapted(tmp_path: Path) -> None:
    last = {
        name: {module.rpartition(".")[2] for module in adapted_modules(build_base(subject(tmp_path, name), SETTINGS))}
        for name in HEADS
    }
    assert last == {
        "bert": {"query", "key", "value", "dense"},
        "vit": {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"},
        "gpt2": {"c_attn", "c_proj", "c_fc"},
        "deberta": {"query_proj", "key_proj", "value_proj", "dense"},
    }


def test_the_named_models_are_of_the_geometry_they_are_named_after() -> None:
    configs = {name: one.config() for name, one in SUBJECTS.items()}
    sizes = {name: (c.hidden_size, c.num_hidden_layers, c.num_attention_heads) for name, c in configs.items()}
    assert sizes["minilm"] == (384, 6, 12)
    assert sizes["vit-b16"] == sizes["gpt2"] == sizes["deberta-v3-base"] == (768, 12, 12)
    assert (configs["vit-b16"].image_size, configs["vit-b16"].patch_size) == (224, 16)
    deberta = configs["deberta-v3-base"]
    assert (deberta.pos_att_type, deberta.position_buckets) == (["p2c", "c2p"], 256)


def test_building_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    one = subject(tmp_path, "bert")
    before = torch.get_rng_state()
    everyone(build_base(one, SETTINGS))
    assert torch.equal(before, torch.get_rng_state())
