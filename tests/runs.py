"""Small models and data files on disk, as a user of the command line would have them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from rmlora.cli import main

COLORS = ("red", "green", "blue", "black", "white", "brown")
THINGS = ("cat", "dog", "house", "car", "tree", "boat")
WORDS = (*COLORS, *THINGS, "the", "is", "a", "not")


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate((*special, *WORDS))}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names).save_pretrained(folder)


def save_bert(folder: Path, hidden: int = 32, layers: int = 2, **settings: Any) -> Path:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=64,
        **settings,
    )
    BertModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def deberta_config(**settings: Any) -> Any:
    from transformers import DebertaV2Config

    shape = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    v3 = {
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
    }
    return DebertaV2Config(**{**shape, "intermediate_size": 64, "max_position_embeddings": 64, **v3, **settings})


def save_deberta(folder: Path) -> Path:
    from transformers import DebertaV2Model

    torch.manual_seed(0)
    DebertaV2Model(deberta_config()).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_vit(folder: Path, channels: int = 3) -> Path:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=channels,
    )
    ViTModel(config).save_pretrained(folder)
    values = {"image_mean": [0.5] * channels, "image_std": [0.5] * channels}
    ViTImageProcessor(size={"height": 8, "width": 8}, **values).save_pretrained(folder)
    return folder


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of sentences about one thing; label 1 if the colours differ."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        thing, first, second = rng.choice(THINGS), rng.choice(COLORS[:3]), rng.choice(COLORS[:3])
        texts = {"sentence1": f"the {thing} is {first}", "sentence2": f"a {thing} is not {second}"}
        rows.append(texts | {"label": int(first != second)})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def save_pairs(folder: Path, train: int = 40, held_out: int = 16) -> tuple[Path, Path]:
    files = (folder / "train.jsonl", folder / "dev.jsonl")
    return write_jsonl(files[0], pairs(train)), write_jsonl(files[1], pairs(held_out, seed=1))


def save_digits(path: Path, train: int = 24, held_out: int = 12) -> Path:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", train), ("test", held_out)):
        labels = np.arange(count) % 3
        noise = rng.integers(0, 60, (count, 8, 8, 3))
        arrays[f"x_{part}"] = (noise + 80 * labels[:, None, None, None]).astype(np.uint8)
        arrays[f"y_{part}"] = labels
    np.savez(path, classes=np.array(["dark", "grey", "bright"]), **arrays)
    return path


def settings(model: Path, files: tuple[Path, Path], output: Path, **changes: Any) -> dict[str, Any]:
    """A quick run: two epochs of five steps."""
    base: dict[str, Any] = {
        "model": str(model),
        "data": {"train": str(files[0]), "eval": str(files[1]), "max_length": 16},
        "lora": {"r": 4},
        "training": {"epochs": 2, "batch_size": 8, "train_eval_examples": 8},
        "output": str(output),
    }
    for name, value in changes.items():
        base[name] = {**base[name], **value} if isinstance(base.get(name), dict) else value
    return base


def settle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with a model, data and a config the current one, without a network."""
    save_bert(folder / "model")
    save_pairs(folder)
    config = {"model": "model", "data": {"train": "train.jsonl", "eval": "dev.jsonl"}, "output": "out"}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


def call(*words: object) -> int:
    """Run the command line in this process and return its exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def files_of(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter_model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
