"""Tiny random models of the true architectures, built from their configurations: a step takes milliseconds."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

VOCABULARY = 64
LENGTH = 8
LABELS = 3
DEBERTA_PROJECTIONS = [
    "query_proj",
    "key_proj",
    "value_proj",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": 32}
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def gpt2(**changes: Any) -> nn.Module:
    """GPT-2, whose projections are transformers' `Conv1D`."""
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": VOCABULARY}
    return GPT2LMHeadModel(GPT2Config(**(sizes | ENDS | changes)))


def deberta(**changes: Any) -> nn.Module:
    """DeBERTa-v2 for sequences, with the relative attention of v3."""
    attention = {
        "relative_attention": True,
        "position_buckets": 4,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
    }
    sizes = SMALL | TEXT | {"num_attention_heads": 2, "pooler_hidden_size": 16, "num_labels": LABELS}
    return DebertaV2ForSequenceClassification(DebertaV2Config(**(sizes | attention | changes)))


def vit(**changes: Any) -> nn.Module:
    """ViT for 8 x 8 grey images, four patches each."""
    images = {"image_size": 8, "patch_size": 4, "num_channels": 1}
    sizes = SMALL | {"num_attention_heads": 2, "num_labels": LABELS}
    return ViTForImageClassification(ViTConfig(**(sizes | images | changes)))


def llama(**changes: Any) -> nn.Module:
    """Llama, with fewer key heads than query heads."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**(SMALL | TEXT | ENDS | heads | changes)))


def bert(**changes: Any) -> nn.Module:
    """BERT for sequences."""
    sizes = SMALL | TEXT | {"num_attention_heads": 2, "num_labels": LABELS}
    return BertForSequenceClassification(BertConfig(**(sizes | changes)))


def text_batch(size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return token ids of equal length with a label per sequence."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (size, LENGTH), generator=draw)
    labels = torch.randint(LABELS, (size,), generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def causal_batch(size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return token ids that are their own labels."""
    batch = text_batch(size, seed)
    return batch | {"labels": batch["input_ids"].clone()}


def image_batch(size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return grey images with a label each."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randn(size, 1, 8, 8, generator=draw)
    return {"pixel_values": pixels, "labels": torch.randint(LABELS, (size,), generator=draw)}


@dataclass(frozen=True)
class Tiny:
    """One architecture: how to build it, what it eats, and how LoRA adapts it."""

    build: Callable[..., nn.Module]
    batch: Callable[..., dict[str, torch.Tensor]]
    lora: dict[str, Any]


TINY = {
    "gpt2": Tiny(
        gpt2,
        causal_batch,
        {"target_modules": ["c_attn", "c_proj"], "task_type": TaskType.CAUSAL_LM, "fan_in_fan_out": True},
    ),
    "deberta": Tiny(
        deberta,
        text_batch,
        {
            "target_modules": DEBERTA_PROJECTIONS,
            "modules_to_save": ["pooler", "classifier"],
            "task_type": TaskType.SEQ_CLS,
        },
    ),
    "vit": Tiny(vit, image_batch, {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}),
    "llama": Tiny(llama, causal_batch, {"target_modules": "all-linear", "task_type": TaskType.CAUSAL_LM}),
    "bert": Tiny(bert, text_batch, {"target_modules": ["query", "value"], "task_type": TaskType.SEQ_CLS}),
}


def lora_settings(name: str, **changes: Any) -> dict[str, Any]:
    """Return how one architecture is adapted: r = 4, scale 2. A copy, because PEFT appends to the lists it is given."""
    return copy.deepcopy({"r": 4, "lora_alpha": 8} | TINY[name].lora | changes)


def lora_config(name: str, **changes: Any) -> LoraConfig:
    """Return the LoRA configuration of one architecture."""
    return LoraConfig(**lora_settings(name, **changes))


def adapted(
    name: str,
    config: LoraConfig | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    base: dict[str, Any] | None = None,
    **changes: Any,
) -> Any:
    """Return one architecture as a PEFT model; the same seed gives the same weights.

    Args:
        name: key of `TINY`.
        config: the adapter's configuration; None makes one from `changes`.
        seed: for the weights of base and adapter; the global generator is set to it.
        dtype: of all weights.
        base: changes of the architecture's own configuration.
        changes: of the LoRA configuration.
    """
    torch.manual_seed(seed)
    bare = TINY[name].build(**(base or {})).to(dtype)
    return get_peft_model(bare, config or lora_config(name, **changes)).to(dtype)


def inputs(name: str, size: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Return a batch for one architecture, its floating-point tensors in `dtype`."""
    batch = TINY[name].batch(size, seed)
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that learn."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def adamw(model: nn.Module, lr: float = 1e-2, **changes: Any) -> torch.optim.AdamW:
    """Return AdamW over the parameters that learn."""
    return torch.optim.AdamW(trained(model), lr=lr, **changes)


def train(model: nn.Module, name: str, optimizer: torch.optim.Optimizer, steps: range = range(4)) -> None:
    """Train in a bare loop; batch and dropout of a step depend on the step alone."""
    model.train()
    for step in steps:
        torch.manual_seed(step)
        model(**inputs(name, seed=step, dtype=next(model.parameters()).dtype)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def learnt(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the parameters that learn, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Return the largest difference between two sets of weights of the same names."""
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)
