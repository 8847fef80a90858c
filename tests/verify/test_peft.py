"""Target `peft`: what reloads as it was trained passes, what does not is named."""

import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertForQuestionAnswering, DebertaV2Model

from rmlora.errors import AdapterError
from rmlora.verify.peft_reload import check_peft
from tests import tiny
from tests.verify.folders import failed, opened, write


@pytest.mark.parametrize("name", tiny.TINY)
def test_an_adapter_of_every_architecture_passes(name: str, tmp_path: Path) -> None:
    checks = check_peft(*opened(write(tmp_path, name)))
    assert failed(checks) == []
    assert len(checks) == 4
    assert checks[1].error < 1e-5
    assert float(checks[1].detail.rpartition(" ")[2]) > 100 * checks[1].error  # the adapter does something


def test_ranks_alphas_and_rank_stabilised_scales_are_part_of_the_formula(tmp_path: Path) -> None:
    changes = {"rank_pattern": {"query": 2}, "alpha_pattern": {"value": 3}, "use_rslora": True}
    assert failed(check_peft(*opened(write(tmp_path, "bert", **changes)))) == []


def test_an_adapter_that_is_more_than_lora_fails_where_it_differs_from_the_formula(tmp_path: Path) -> None:
    checks = check_peft(*opened(write(tmp_path, "bert", use_dora=True)))
    assert "reload equals W0 + s B A, fp32" in failed(checks)
    assert "merge_and_unload, fp32" not in failed(checks)


def test_weights_that_no_file_holds_are_named(tmp_path: Path) -> None:
    adapter = write(tmp_path, "deberta", modules_to_save=["classifier"])
    torch.manual_seed(0)
    whole = tiny.deberta()
    DebertaV2Model.from_pretrained(tmp_path / "base").save_pretrained(tmp_path / "base")
    assert "pooler.dense.weight" in whole.state_dict()
    first = check_peft(*opened(adapter))[0]
    assert not first.passed
    assert "pooler.dense" in first.detail


def test_the_share_of_a_small_update_that_bf16_loses_is_told(tmp_path: Path) -> None:
    large, small = (
        check_peft(*opened(write(tmp_path / str(size), "gpt2", size=size)))[3].detail for size in (0.3, 2e-3)
    )
    shares = [float(re.search(r"is ([\d.]+)% off", detail)[1]) for detail in (large, small)]
    assert shares[0] < 1
    assert shares[1] > 20


def test_an_adapter_that_does_nothing_is_said_to(tmp_path: Path) -> None:
    assert "changes no output" in check_peft(*opened(write(tmp_path, "bert", size=0.0)))[1].detail


def test_what_peft_cannot_merge_is_refused_in_a_line(tmp_path: Path) -> None:
    adapter = write(tmp_path, "llama", lora_bias=True, target_modules=["q_proj"])
    with pytest.raises(AdapterError, match="cannot merge"):
        check_peft(*opened(adapter))


def test_the_head_of_question_answering_is_read_off_the_adapter(tmp_path: Path) -> None:
    tiny.bert().save_pretrained(tmp_path / "base")  # whose own configuration has three labels
    bare = BertForQuestionAnswering.from_pretrained(tmp_path / "base", num_labels=2)
    model = get_peft_model(bare, LoraConfig(r=2, target_modules=["query"], task_type="QUESTION_ANS"))
    model.save_pretrained(tmp_path / "adapter")
    assert failed(check_peft(*opened(tmp_path / "adapter"))) == []


def test_another_base_model_is_refused(tmp_path: Path) -> None:
    adapter = write(tmp_path / "llama", "llama")
    subject, base = opened(adapter)
    write(tmp_path / "gpt2", "gpt2")
    with pytest.raises(AdapterError, match="no module"):
        check_peft(subject, type(base)(str(tmp_path / "gpt2" / "base"), subject))
