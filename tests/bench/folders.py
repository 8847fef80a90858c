"""Folders with the config.json of tiny models, as `rmlora bench --model` takes them; no weights."""

from __future__ import annotations

from pathlib import Path

from tests import tiny

HEADS = {
    "bert": "BertForSequenceClassification",
    "vit": "ViTForImageClassification",
    "gpt2": "GPT2LMHeadModel",
    "deberta": "DebertaV2ForSequenceClassification",
}


def save_config(folder: Path, name: str) -> Path:
    """Write the configuration of a tiny model, its dropout left on."""
    config = tiny.TINY[name].build().config
    config.architectures = [HEADS[name]]
    config.save_pretrained(folder)
    return folder
