"""Target `vllm`: each rule refuses what it is about and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from rmlora.verify.vllm_rules import check_vllm
from tests.verify.folders import failed, opened, write


def edit(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_plain_adapter_of_llama_passes_and_the_rank_to_start_with_is_told(tmp_path: Path) -> None:
    checks = check_vllm(*opened(write(tmp_path, "llama", r=9)))
    assert failed(checks) == []
    assert any("--max-lora-rank 16" in check.detail for check in checks)


def test_rank_stabilised_adapters_pass_because_vllm_reads_the_setting(tmp_path: Path) -> None:
    checks = check_vllm(*opened(write(tmp_path, "llama", use_rslora=True)))
    assert failed(checks) == []
    assert any("s = 4 " in check.detail for check in checks)


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({"use_dora": True}, ["no variants of LoRA", "tensors are lora_A and lora_B alone"]),
        ({"bias": "lora_only"}, ["bias"]),
        ({"modules_to_save": ["lm_head"]}, ["modules_to_save", "tensors are lora_A and lora_B alone"]),
        ({"rank_pattern": {"q_proj": 2}}, ["rank", "scale"]),
        ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4}}, ["rank"]),
        ({"alpha_pattern": {"v_proj": 2}}, ["scale"]),
        ({"r": 513}, ["rank"]),
    ],
)
def test_vllm_9280_what_vllm_refuses_or_misreads_fails(
    tmp_path: Path, changes: dict[str, Any], rules: list[str]
) -> None:
    targets = {} if changes.get("modules_to_save") is None else {"target_modules": ["q_proj", "v_proj"]}
    checks = check_vllm(*opened(write(tmp_path, "llama", **targets, **changes)))
    assert failed(checks) == rules
    assert all(check.remedy for check in checks if not check.passed)


def test_a_rank_that_the_settings_understate_fails(tmp_path: Path) -> None:
    adapter = write(tmp_path, "llama")
    edit(adapter, r=2, lora_alpha=4, rank_pattern={".*": 4}, alpha_pattern={".*": 8})
    assert failed(check_vllm(*opened(adapter))) == ["rank"]


def test_architectures_without_lora_in_vllms_table_fail(tmp_path: Path) -> None:
    assert failed(check_vllm(*opened(write(tmp_path, "gpt2")))) == ["architecture"]


def test_embeddings_that_peft_copied_beside_their_factors_are_passed_over(tmp_path: Path) -> None:
    subject, base = opened(write(tmp_path, "llama", target_modules=["embed_tokens", "q_proj"]))
    assert any("embed_tokens.base_layer" in key for key in subject.adapter.keys)
    assert failed(check_vllm(subject, base)) == []


def test_layers_that_vllm_has_not_fail(tmp_path: Path) -> None:
    subject, base = opened(write(tmp_path, "gpt2"))
    config = base.config
    config.architectures = ["LlamaForCausalLM"]
    check = next(check for check in check_vllm(subject, base) if check.name == "target modules")
    assert (check.passed, check.detail) == (False, "c_attn, c_proj")
