"""Tiny causal language models on disk, whose tokenizer knows the words of `tests.runs`."""

from pathlib import Path
from typing import Any

import torch

from tests import runs

COLORS = runs.COLORS[:3]


def save_tokenizer(folder: Path, begin: bool = False) -> None:
    """Words; an end token and no padding token, as GPT-2's; with `begin` each text begins with [BOS], as Llama's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ("[UNK]", "[BOS]", "[EOS]", *runs.WORDS)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 1)])
    names = {"unk_token": "[UNK]", "eos_token": "[EOS]"} | ({"bos_token": "[BOS]"} if begin else {})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def save_gpt2(folder: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=2, eos_token_id=2)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_llama(folder: Path, **changes: Any) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    config = LlamaConfig(**(shape | heads | {"bos_token_id": 1, "eos_token_id": 2} | changes))
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder, begin=True)
    return folder


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Prompts and completions of different lengths: the completion says again what the prompt said."""
    found = []
    for row in runs.pairs(count, seed):
        thing, color = row["sentence1"].split()[1], row["sentence1"].split()[3]
        more = f" a {thing} is not brown" if row["label"] else ""
        found.append({"prompt": f"{thing} {color}", "completion": f"the {thing} is {color}{more}"})
    return found


def save_rows(folder: Path, train: int = 40, held_out: int = 16) -> tuple[Path, Path]:
    files = (folder / "train.jsonl", folder / "dev.jsonl")
    return runs.write_jsonl(files[0], rows(train)), runs.write_jsonl(files[1], rows(held_out, seed=1))
