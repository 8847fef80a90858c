"""A random Llama learns the E2E restaurant descriptions with GPT-2's tokens; needs ../shared."""

import json
from pathlib import Path

import pytest
import torch

from rmlora.config_source import resolve
from rmlora.train import train
from tests import runs

SHARED = Path(__file__).resolve().parents[3] / "shared"
E2E, TOKENS = SHARED / "data" / "e2e", SHARED / "tokenizers" / "gpt2" / "tokenizer.json"


@pytest.mark.slow
@pytest.mark.skipif(not (E2E.is_dir() and TOKENS.is_file()), reason="../shared is not there")
def test_e2e_is_learned(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_file=str(TOKENS), bos_token=end, eos_token=end).save_pretrained(tmp_path / "m")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4}
    torch.manual_seed(0)
    ends = {"bos_token_id": 50256, "eos_token_id": 50256}
    LlamaForCausalLM(LlamaConfig(vocab_size=50257, **shape, **ends)).save_pretrained(tmp_path / "m")
    files = (E2E / "train-10k.jsonl", E2E / "validation-1k.jsonl")
    settings = runs.settings(tmp_path / "m", files, tmp_path / "run", task="causal-lm", method="full")
    settings["data"] |= {"max_length": 128, "separator": "\n", "train_examples": 300, "eval_examples": 50}
    settings["training"] = {"epochs": 3, "batch_size": 8, "eval_batch_size": 8, "lr": 3e-3, "train_eval_examples": 0}
    settings["generation"] = {"examples": 8, "max_new_tokens": 40, "metrics": ["rouge_l", "bleu"]}
    result = train(resolve(settings))
    losses = [row["eval_loss"] for row in runs.rows(tmp_path / "run")]
    assert losses[-1] < losses[0] < 10.8, "a uniform guess is 10.8"
    generated = [json.loads(line) for line in (tmp_path / "run" / "generated.jsonl").read_text().splitlines()]
    assert len(generated) == result["generation"]["examples"] == 8
    assert result["generation"]["rouge_l"] > 0.1
