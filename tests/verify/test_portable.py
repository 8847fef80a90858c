"""`--portable`: equal outputs, one rank, one alpha, the head beside it, the source untouched."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, PeftModel
from transformers import AutoModelForSequenceClassification

from rmlora.errors import AdapterError
from rmlora.verify.peft_reload import check_peft, reload
from rmlora.verify.portable import write_portable
from rmlora.verify.probe import answer, distance, probe
from rmlora.verify.vllm_rules import check_vllm
from tests import tiny
from tests.verify.folders import failed, opened, write


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "down_proj": 7}},
        {"alpha_pattern": {"v_proj": 3}, "rank_pattern": {"k_proj": 1}, "use_rslora": True},
    ],
)
def test_sglang_40835_outputs_stay_and_everything_is_uniform(tmp_path: Path, changes: dict[str, Any]) -> None:
    adapter = write(tmp_path, "llama", **changes)
    before = bytes_of(tmp_path)
    subject, base = opened(adapter)
    made = write_portable(subject, base, tmp_path / "out")
    assert bytes_of(tmp_path).items() >= before.items()
    written = opened(tmp_path / "out")
    assert failed(check_vllm(*written)) == []
    config = written[0].config
    assert (config["rank_pattern"], config["alpha_pattern"], config["use_rslora"]) == ({}, {}, False)
    assert {pair.r for pair in written[0].pairs} == {config["r"]} == {made.r}
    answers = []
    for one in (subject, base), written:
        model = reload(*one, torch.float32)
        answers.append(answer(model, probe(model)))
    assert distance(answers[1], answers[0]) < 1e-5


def test_a_head_lies_beside_the_adapter_and_the_cards_code_puts_it_back(tmp_path: Path) -> None:
    adapter = write(tmp_path, "deberta", target_modules=["query_proj", "value_proj"])
    subject, base = opened(adapter)
    before = reload(subject, base, torch.float32)
    with torch.no_grad():  # a head that the base has not
        head = before.base_model.model.classifier.modules_to_save["default"]
        head.weight.normal_()
    before.save_pretrained(adapter)
    subject, base = opened(adapter)
    made = write_portable(subject, base, tmp_path / "out")
    assert "classifier.weight" in made.head
    modules = [pair.name for pair in subject.pairs]
    assert sorted(opened(tmp_path / "out")[0].config["target_modules"]) == sorted(modules)
    assert failed(check_peft(*opened(tmp_path / "out"))) == []
    card = (tmp_path / "out" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card[card.index("## Loading") :], re.DOTALL)[1]
    space: dict[str, Any] = {}
    exec(code.replace("<this folder>", str(tmp_path / "out")), space)
    model = space["model"].eval()
    assert distance(answer(model, probe(model)), answer(before.eval(), probe(before))) < 1e-5
    bare = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    bare = PeftModel.from_pretrained(bare, tmp_path / "out").eval()
    assert distance(answer(bare, probe(bare)), answer(before, probe(before))) > 1e-2


def test_adalora_becomes_plain_lora(tmp_path: Path) -> None:
    config = AdaLoraConfig(init_r=4, target_r=2, lora_alpha=8, target_modules=["q_proj"], total_step=10, tfinal=2)
    subject, base = opened(write(tmp_path, "llama", config=config))
    write_portable(subject, base, tmp_path / "out")
    written = opened(tmp_path / "out")
    assert written[0].adapter.peft_type == "LORA"
    assert failed(check_vllm(*written)) == []
    assert failed(check_peft(*written)) == []


def test_the_revision_of_a_hub_base_is_pinned_where_a_run_wrote_it_down(tmp_path: Path) -> None:
    subject, base = opened(write(tmp_path, "llama"))
    assert write_portable(subject, base, tmp_path / "unknown").revision is None
    (tmp_path / "adapter" / "environment.json").write_text(json.dumps({"model": {"name": "a/b", "commit": "c0ffee"}}))
    made = write_portable(subject, base, tmp_path / "known")
    assert made.revision == json.loads((tmp_path / "known" / "adapter_config.json").read_text())["revision"] == "c0ffee"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"use_dora": True}, "use_dora"), ({"init_lora_weights": "pissa"}, "pissa"), ({"bias": "all"}, "bias")],
)
def test_what_no_plain_lora_can_say_is_refused_and_nothing_is_left(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    subject, base = opened(write(tmp_path, "llama", **changes))
    with pytest.raises(AdapterError, match=message):
        write_portable(subject, base, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    subject, base = opened(write(tmp_path, "bert"))
    with pytest.raises(AdapterError, match="not an empty folder"):
        write_portable(subject, base, tmp_path / "base")


def test_labels_are_read_off_the_saved_head(tmp_path: Path) -> None:
    _, base = opened(write(tmp_path, "vit"))
    assert base.head_size() == {"num_labels": tiny.LABELS}
