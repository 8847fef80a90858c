"""Folders that cannot be inspected: each says what is wrong, where, and what to do, in at most two lines."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from rmlora.analysis.adapters import inspect_adapter
from rmlora.errors import AdapterError

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
PREFIX = "base_model.model.layer.0.q"
A, B = torch.randn(2, 5), torch.randn(3, 2)


def write(folder, config=CONFIG, tensors=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if tensors is None:
        tensors = {f"{PREFIX}.lora_A.weight": A, f"{PREFIX}.lora_B.weight": B}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def refuse(folder, *words):
    with pytest.raises(AdapterError) as caught:
        inspect_adapter(folder)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert message.count("\n") <= 1
    return message


def test_the_good_folder_is_good(tmp_path):
    assert len(inspect_adapter(write(tmp_path)).modules) == 1


def test_missing_folder(tmp_path):
    refuse(tmp_path / "none", "No adapter folder", "none")


def test_a_file_instead_of_the_folder(tmp_path):
    refuse(write(tmp_path) / "adapter_model.safetensors", "Not a folder", "adapter_config.json")


def test_missing_config(tmp_path):
    refuse(tmp_path, "has no adapter_config.json", "save_pretrained")


def test_missing_config_names_the_subfolder_that_has_one(tmp_path):
    write(tmp_path / "adapter")
    refuse(tmp_path, "has no adapter_config.json", "subfolder adapter")


@pytest.mark.parametrize("text", ["", "{not json", '{"peft_type": "LORA",', "\x00"])
def test_config_that_is_not_json(tmp_path, text):
    refuse(write(tmp_path, text), "adapter_config.json", "JSON")


def test_config_of_bytes_that_are_not_text(tmp_path):
    (write(tmp_path) / "adapter_config.json").write_bytes(b"\xff\xfe\x00{")
    refuse(tmp_path, "adapter_config.json", "JSON")


def test_config_that_is_not_an_object(tmp_path):
    refuse(write(tmp_path, "[1, 2]"), "list", "JSON object")


@pytest.mark.parametrize("kind", ["VERA", "PREFIX_TUNING", 7])
def test_an_adapter_of_another_kind(tmp_path, kind):
    refuse(write(tmp_path, CONFIG | {"peft_type": kind}), repr(kind), "LORA and ADALORA")


def test_no_kind_at_all(tmp_path):
    refuse(write(tmp_path, {"r": 2, "lora_alpha": 2}), "no peft_type")


def test_missing_weights(tmp_path):
    (write(tmp_path) / "adapter_model.safetensors").unlink()
    refuse(tmp_path, "has no adapter_model.safetensors")


def test_a_pickle_is_never_opened(tmp_path):
    (write(tmp_path) / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"not even a pickle")
    refuse(tmp_path, "adapter_model.bin", "pickle", "save_pretrained")


@pytest.mark.parametrize("keep", [0, 4, 20, -8])
def test_truncated_weights(tmp_path, keep):
    file = write(tmp_path) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refuse(tmp_path, "adapter_model.safetensors", "damaged")


def test_weights_that_are_something_else(tmp_path):
    (write(tmp_path) / "adapter_model.safetensors").write_bytes(b"PK\x03\x04" + b"x" * 400)
    refuse(tmp_path, "damaged")


def test_no_lora_tensors_names_what_was_found(tmp_path):
    tensors = {f"layer.{i}.weight": torch.ones(1) for i in range(5)}
    refuse(write(tmp_path, tensors=tensors), "no lora_A/lora_B", "layer.0.weight", "and 2 more")


def test_an_empty_weights_file(tmp_path):
    refuse(write(tmp_path, tensors={}), "no tensors at all")


@pytest.mark.parametrize("lost", ["A", "B"])
def test_one_half_missing(tmp_path, lost):
    tensors = {f"{PREFIX}.lora_A.weight": A, f"{PREFIX}.lora_B.weight": B}
    del tensors[f"{PREFIX}.lora_{lost}.weight"]
    refuse(write(tmp_path, tensors=tensors), "layer.0.q", f"no lora_{lost}")


def test_halves_of_different_rank(tmp_path):
    tensors = {f"{PREFIX}.lora_A.weight": A, f"{PREFIX}.lora_B.weight": torch.ones(3, 4)}
    refuse(write(tmp_path, tensors=tensors), "(2, 5)", "(3, 4)")


def test_ungathered_shards(tmp_path):
    tensors = {f"{PREFIX}.lora_A.weight": torch.ones(0), f"{PREFIX}.lora_B.weight": torch.ones(6)}
    refuse(write(tmp_path, tensors=tensors), "(0,)", "sharded")


def test_rank_of_the_config_is_not_that_of_the_tensors(tmp_path):
    refuse(write(tmp_path, CONFIG | {"r": 8}), "2 directions", "r = 8")


@pytest.mark.parametrize("field", ["r", "lora_alpha"])
@pytest.mark.parametrize("value", [None, "8", True, float("inf"), float("nan")])
def test_scale_that_is_no_number(tmp_path, field, value):
    refuse(write(tmp_path, CONFIG | {field: value}), field, repr(value))


@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_rank_that_is_no_rank(tmp_path, value):
    refuse(write(tmp_path, CONFIG | {"r": value}), "whole number")


def test_pattern_that_is_no_regular_expression(tmp_path):
    refuse(write(tmp_path, CONFIG | {"rank_pattern": {"q(": 2}}), "rank_pattern", "q(")


def test_pattern_that_is_no_mapping(tmp_path):
    refuse(write(tmp_path, CONFIG | {"alpha_pattern": ["q"]}), "alpha_pattern", "must map")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_adapter(tmp_path, bad):
    broken = A.clone()
    broken[1, 2] = bad
    tensors = load_file(write(tmp_path) / "adapter_model.safetensors") | {f"{PREFIX}.lora_A.weight": broken}
    refuse(write(tmp_path, tensors=tensors), "layer.0.q", "NaN or infinity")


def test_adalora_values_of_another_rank(tmp_path):
    config = {"peft_type": "ADALORA", "init_r": 2, "lora_alpha": 2}
    tensors = {f"{PREFIX}.lora_A": A, f"{PREFIX}.lora_B": B, f"{PREFIX}.lora_E": torch.ones(3, 1)}
    refuse(write(tmp_path, config, tensors), "(3, 1)", "one value per row")


def test_patterns_over_expert_parameters(tmp_path):
    config = CONFIG | {"target_parameters": ["gate_up"], "rank_pattern": {"gate_up": 1}}
    refuse(write(tmp_path, config), "target_parameters", "rank_pattern")
