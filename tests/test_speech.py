"""Speech models of the true architectures, tiny and random: no speech data could be had, so only the path is tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import rmlora

Batch = dict[str, Tensor]
NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop", "final_dropout"),
    0.0,
)
SOUND: dict[str, Any] = NO_DROPOUT | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "apply_spec_augment": False,
    "vocab_size": 12,
}
WHISPER: dict[str, Any] = {
    "vocab_size": 60,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 16,
    "dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "begin_suppress_tokens": None,
}


def waves(size: int) -> Tensor:
    return torch.randn(size, 400, generator=torch.Generator().manual_seed(0))


def letters() -> tuple[nn.Module, Batch]:
    return Wav2Vec2ForCTC(Wav2Vec2Config(**SOUND)), {
        "input_values": waves(3),
        "labels": torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
    }


def commands() -> tuple[nn.Module, Batch]:
    config = Wav2Vec2Config(**SOUND, num_labels=3, classifier_proj_size=16)
    return Wav2Vec2ForSequenceClassification(config), {"input_values": waves(3), "labels": torch.tensor([0, 1, 2])}


def whisper() -> tuple[nn.Module, Batch]:
    sound = torch.randn(3, 8, 40, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[3, 4, 5, 2], [6, 7, 8, 2], [9, 10, 11, 2]])
    return WhisperForConditionalGeneration(WhisperConfig(**WHISPER)), {"input_features": sound, "labels": labels}


MODELS: dict[str, Callable[[], tuple[nn.Module, Batch]]] = {
    "wav2vec2 for letters": letters,
    "wav2vec2 for commands": commands,
    "whisper": whisper,
}
METHODS = {
    "lora": rmlora.lora(),
    "rm-lora": rmlora.rm_lora(weight=1e-2, directions=2, policy="state"),
    "lora-dropout": rmlora.lora_dropout(0.2),
    "sora": rmlora.sora(),
}


def adapt(build: Callable[[], tuple[nn.Module, Batch]]) -> tuple[Any, Batch]:
    torch.manual_seed(0)
    base, batch = build()
    return get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])), batch


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_the_loss_falls_and_the_adapter_loads_in_peft_alone(name: str, method: str, tmp_path: Path) -> None:
    model, batch = adapt(MODELS[name])
    rmlora.attach(model, METHODS[method])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2, weight_decay=0.0)
    losses = []
    for _ in range(12):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    model.eval()
    with torch.no_grad():
        trained = model(**batch).logits
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    reloaded = PeftModel.from_pretrained(MODELS[name]()[0], str(tmp_path)).eval()
    with torch.no_grad():
        assert (reloaded(**batch).logits - trained).abs().max() <= 1e-5 * trained.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_masked_directions_stay_and_every_projection_is_fast(name: str) -> None:
    model, batch = adapt(MODELS[name])
    handle = rmlora.attach(model, METHODS["rm-lora"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    before = {pair.name: pair.A.detach().clone() for pair in handle.pairs}
    model(**batch).loss.backward()
    kept = {pair.name: mask.A for pair, mask in handle.masks()}
    optimizer.step()
    assert len(kept) == len(handle.pairs)
    for pair in handle.pairs:
        moved = (pair.A.detach() != before[pair.name]).any(1)
        assert torch.equal(moved, kept[pair.name])
    assert not [path for path in handle.paths().values() if path.startswith("reference")]
