"""How much faster a classification layer is trained on cached features than through the backbone in every epoch.

    python measure.py --data cifar100/subset.npz --hidden 192 --layers 12 --image 32 --patch 4

The ViT is random: speed does not depend on its weights. One epoch through the backbone is measured and multiplied by
the number of epochs, because every epoch is the same work; training on cached features is measured whole, from an
empty cache.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from rmlora.config import RunConfig
from rmlora.heads import train_head
from rmlora.heads.backbone import input_of, last_linear
from rmlora.heads.layer import make_layer
from rmlora.heads.settings import complete_head
from rmlora.modeling import load_model
from rmlora.tasks.data import load_data
from rmlora.tasks.encode import ImageExamples, collate_images


def save_vit(folder: Path, told: argparse.Namespace) -> int:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=told.hidden,
        num_hidden_layers=told.layers,
        num_attention_heads=told.hidden // 64,
        intermediate_size=4 * told.hidden,
        image_size=told.image,
        patch_size=told.patch,
        num_labels=100,
    )
    model = ViTForImageClassification(config)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": told.image, "width": told.image}).save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def epoch_through_backbone(config: RunConfig) -> float:
    """One epoch as the paper's recipe has it: train batches and held-out batches through the frozen ViT."""
    data = load_data(config.data, config.task)
    loaded = load_model(config, data)
    model, layer = loaded.model.eval(), last_linear(loaded)
    head = make_layer(config, layer.in_features, layer.out_features).model
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=1e-3)
    collate = collate_images(loaded.processor)
    begun = time.perf_counter()
    for part in (data.train, data.eval):
        rows = ImageExamples(part, "RGB")
        for indices in torch.randperm(len(rows)).split(128):
            batch = collate([rows[i] for i in indices.tolist()])
            with torch.no_grad():
                features = input_of(layer, model, batch)
            if part is data.train:
                functional.cross_entropy(head(features), batch["labels"]).backward()
                optimizer.step()
                optimizer.zero_grad()
    return time.perf_counter() - begun


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("--data", required=True)
    for name, value in {"hidden": 768, "layers": 12, "image": 224, "patch": 16, "epochs": 60}.items():
        words.add_argument(f"--{name}", type=int, default=value)
    words.add_argument("--train", type=int)
    words.add_argument("--eval", type=int)
    told = words.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_CACHE_HOME"] = f"{temporary}/cache"
        size = save_vit(Path(temporary) / "vit", told)
        data = {"train": told.data, "train_examples": told.train, "eval_examples": told.eval}
        config = RunConfig(
            model=f"{temporary}/vit",
            task="image-classification",
            scope="head",
            method="rm-lora",
            data=data,
            lora={"r": 64, "scale": 1},
            training={"epochs": told.epochs, "batch_size": 128, "lr": 1e-3},
        )
        begun = time.perf_counter()
        result = train_head(config, Path(temporary) / "out")
        cached = time.perf_counter() - begun
        begun = time.perf_counter()
        train_head(config, Path(temporary) / "again")
        warm = time.perf_counter() - begun
        epoch = epoch_through_backbone(complete_head(config))
    row = {
        "geometry": f"ViT {told.hidden} x {told.layers}, {told.image} px in patches of {told.patch}",
        "parameters": size,
        "examples": result["examples"],
        "epochs": told.epochs,
        "cold_cache_seconds": round(cached, 1),
        "warm_cache_seconds": round(warm, 1),
        "backbone_epoch_seconds": round(epoch, 1),
        "backbone_all_seconds": round(told.epochs * epoch, 1),
        "times_faster": round(told.epochs * epoch / cached, 1),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
