"""Opening experts: what is no plain LoRA, or belongs to another base, is one line before any work."""

import json
from pathlib import Path
from typing import Any

import pytest

from rmlora.errors import AdapterError
from rmlora.experts import Base, identify_base, open_experts, refuse_other_base
from tests import runs
from tests.experts import made


def rewrite(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_ranks_and_names_may_differ(tmp_path: Path) -> None:
    paths = [made.save_expert(tmp_path / task / "out", seed=i, r=2 + i) for i, task in enumerate(("rte", "cola"))]
    experts = open_experts([*paths, str(tmp_path / "rte" / ".." / "rte" / "out")])
    assert [e.name for e in experts] == ["rte/out", "cola/out", "rte/out-2"]
    assert [e.pairs()[0].r for e in experts] == [2, 3, 2]
    assert experts[0].sha256 == experts[2].sha256 != experts[1].sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, r"has magnitudes \(DoRA\) beside A and B; experts are plain LoRA"),
        ({"bias": "lora_only"}, "has trained biases beside A and B"),
        ({"lora_bias": True}, "has biases of B beside A and B"),
        ({"init_lora_weights": "pissa_niter_4"}, "as pissa_niter_4 changed it"),
        ({"peft_type": "ADALORA"}, "is a ADALORA adapter; experts are plain LoRA"),
        ({"peft_type": "VERA"}, "peft_type 'VERA'"),
    ],
)
def test_what_is_no_plain_lora_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = rewrite(made.save_expert(tmp_path / "odd"), **changes)
    with pytest.raises(AdapterError, match=message) as refused:
        open_experts([folder])
    assert str(tmp_path / "odd") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_missing_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no experts"):
        open_experts([])
    with pytest.raises(AdapterError, match="No adapter folder at"):
        open_experts([tmp_path / "nowhere"])
    folder = made.save_expert(tmp_path / "cut")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(AdapterError, match="damaged or cut short"):
        open_experts([folder])


def test_a_base_is_known_by_its_name_and_where_it_can_by_its_hashes(tmp_path: Path) -> None:
    model = runs.save_bert(tmp_path / "minilm")
    expert = rewrite(made.save_expert(tmp_path / "e"), base_model_name_or_path="owner/minilm")
    refuse_other_base(open_experts([expert]), identify_base(str(model)))
    with pytest.raises(
        AdapterError, match=r'is an adapter of "owner/minilm", not of "owner/bert", which has another name'
    ):
        refuse_other_base(open_experts([expert]), Base("owner/bert"))
    digest = identify_base(str(model)).files["model.safetensors"]
    record = expert / "environment.json"
    record.write_text(json.dumps({"model": {"files": {"model.safetensors": digest, "config.json": "0f"}}}))
    elsewhere = Path(runs.save_bert(tmp_path / "renamed"))
    refuse_other_base(open_experts([expert]), identify_base(str(elsewhere)))
    other = runs.save_bert(tmp_path / "other" / "minilm", hidden=16)
    with pytest.raises(AdapterError, match="whose weights have other hashes"):
        refuse_other_base(open_experts([expert]), identify_base(str(other)))


def test_a_commit_must_be_the_same_where_both_are_known(tmp_path: Path) -> None:
    expert = made.save_expert(tmp_path / "e")
    rewrite(expert, base_model_name_or_path="owner/minilm", revision="a" * 40)
    refuse_other_base(open_experts([expert]), Base("owner/minilm"))
    with pytest.raises(AdapterError, match=r"at commit b+, but it was trained at a+"):
        refuse_other_base(open_experts([expert]), Base("owner/minilm", "b" * 40))
