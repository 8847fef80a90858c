"""TRL's SFTTrainer: one line more than plain LoRA trains RM-LoRA, and so does a config alone."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import rmlora
from rmlora.pairs import find_pairs
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "sft_trl.py"
SHARED = ROOT.parent / "shared"
END = "<|endoftext|>"
WORDS = [f"word{i}" for i in range(40)]


def make_tokenizer():
    vocabulary = {word: index for index, word in enumerate([END, "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def make_rows(num=16):
    draw = torch.Generator().manual_seed(0)
    pick = torch.randint(len(WORDS), (num, 6), generator=draw).tolist()
    sentences = [[WORDS[i] for i in row] for row in pick]
    return [{"prompt": " ".join(words[:3]), "completion": " ".join(words[3:])} for words in sentences]


def run_example(monkeypatch, data, tokenizer, output, steps):
    """Run the script as `python examples/sft_trl.py ...` does; return its variables."""
    arguments = {"--data": data, "--tokenizer": tokenizer, "--output": output, "--steps": steps}
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *(str(word) for item in arguments.items() for word in item)])
    return runpy.run_path(str(EXAMPLE), run_name="__main__")


def assert_trained(found, output, steps):
    """The method acted at every step, and what it left is plain LoRA that learnt something."""
    (handle,) = rmlora.attached(found["model"])
    assert handle.step == found["trainer"].state.global_step == steps
    assert json.loads((output / "adapter/adapter_config.json").read_text())["peft_type"] == "LORA"

    base = LlamaForCausalLM.from_pretrained(output / "base")
    plain = PeftModel.from_pretrained(base, output / "adapter").eval()
    # The trainer leaves its bf16 autocast around the live model, so factors are compared, not outputs.
    for pair, loaded in zip(handle.pairs, find_pairs(plain), strict=True):
        assert torch.equal(pair.A, loaded.A)
        assert torch.equal(pair.B, loaded.B)
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad(), plain.disable_adapter():
        untrained = plain(ids).logits
    assert (plain(ids).logits - untrained).abs().max() > 1e-6


def test_the_example_trains_and_its_adapter_loads_in_plain_peft(monkeypatch, tmp_path):
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, make_rows())))
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    found = run_example(monkeypatch, tmp_path / "data.jsonl", tmp_path / "tokenizer.json", tmp_path / "out", 2)
    assert_trained(found, tmp_path / "out", 2)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data/e2e").is_dir(), reason="needs ../shared/data/e2e")
@pytest.mark.skipif(not (SHARED / "tokenizers/gpt2").is_dir(), reason="needs ../shared/tokenizers/gpt2")
def test_the_example_trains_on_e2e_with_the_tokenizer_of_gpt2(monkeypatch, tmp_path):
    data, tokenizer = SHARED / "data/e2e/train-10k.jsonl", SHARED / "tokenizers/gpt2/tokenizer.json"
    found = run_example(monkeypatch, data, tokenizer, tmp_path, 10)
    assert_trained(found, tmp_path, 10)
    losses = [row["loss"] for row in found["trainer"].state.log_history if "loss" in row]
    assert losses[-1] < torch.tensor(float(len(found["tokenizer"]))).log()  # better than guessing evenly


def train_sft(folder, model, *, peft_config=None, steps=3):
    """Run SFTTrainer as a user would, with its defaults (among them gradient checkpointing)."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(), eos_token=END, pad_token=END)
    settings = SFTConfig(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    data = Dataset.from_list(make_rows())
    trainer = SFTTrainer(model, settings, train_dataset=data, processing_class=tokenizer, peft_config=peft_config)
    trainer.train()
    return trainer.model


def base():
    torch.manual_seed(0)
    return tiny.llama(bos_token_id=None, eos_token_id=0, pad_token_id=0)


def test_a_config_alone_trains_rm_lora_as_attaching_does(tmp_path):
    # Factors that begin as a function of the base, because the trainer draws at another time than we do.
    settings = tiny.lora_settings("llama", init_lora_weights="olora")
    config = rmlora.RMLoraConfig(**settings, weight=1e-2, directions=2)
    by_config = train_sft(tmp_path / "config", base(), peft_config=config)
    assert rmlora.attached(by_config)[0].step == 3

    model = get_peft_model(base(), LoraConfig(**settings))
    handle = rmlora.attach(model, rmlora.rm_lora(weight=1e-2, directions=2))
    train_sft(tmp_path / "attached", model)
    assert handle.step == 3
    assert tiny.distance(tiny.learnt(by_config), tiny.learnt(model)) == 0.0

    plain = train_sft(tmp_path / "plain", base(), peft_config=LoraConfig(**settings))
    assert tiny.distance(tiny.learnt(plain), tiny.learnt(model)) > 1e-3


def test_trl_3926_the_first_step_of_sft_moves_the_kept_directions_only(tmp_path):
    model = get_peft_model(base(), tiny.lora_config("llama"))
    handle = rmlora.attach(model, rmlora.rm_lora(weight=1e-2, directions=1))
    kept = handle.kept()
    train_sft(tmp_path, model, steps=1)
    for pair in handle.pairs:  # B begins at zero, so what moved shows
        assert pair.B.abs().sum(0).nonzero().flatten().tolist() == kept[pair.name][1]


def test_dpo_trains_the_method_and_leaves_its_reference_adapter_alone(tmp_path):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(), eos_token=END, pad_token=END)
    settings = DPOConfig(
        str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    rows = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": " ".join(WORDS[:3])} for r in make_rows()]
    model = get_peft_model(base(), tiny.lora_config("llama"))
    handle = rmlora.attach(model, rmlora.rm_lora(weight=1e-2, directions=1))
    start = {pair.name: pair.A.detach().clone() for pair in handle.pairs}
    DPOTrainer(model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()
    assert handle.step == 3
    for pair, reference in zip(handle.pairs, find_pairs(model, "ref"), strict=True):
        assert torch.equal(reference.A, start[pair.name])
        assert reference.B.count_nonzero() == 0
        assert 1 <= pair.B.abs().sum(0).count_nonzero() <= 3  # one direction at each of three steps


def test_what_a_config_trained_under_sft_loads_in_plain_peft(tmp_path):
    config = rmlora.RMLoraConfig(**tiny.lora_settings("llama"), weight=1e-2, directions=2)
    model = train_sft(tmp_path / "run", base(), peft_config=config)
    model.save_pretrained(tmp_path / "adapter")
    plain = PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
    assert type(plain.peft_config["default"]).__name__ == "LoraConfig"
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, model.eval()(ids).logits, atol=1e-6)
