"""The oracle: every batch through the frozen backbone, in every epoch, and the layer adapted where it stands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, ViTForImageClassification

import rmlora
from rmlora.config import RunConfig
from rmlora.heads import train_head
from rmlora.heads.backbone import mean_of_tokens
from rmlora.heads.fitting import batch_order
from rmlora.heads.layer import make_layer
from rmlora.methods import METHODS
from rmlora.modeling import load_model
from rmlora.tasks.data import Examples, TaskData, load_data
from rmlora.tasks.encode import ImageExamples, collate_images, encode_texts, pad_texts


class MeanPooled(nn.Module):
    """A text encoder, the mean over its tokens, and a classifier."""

    def __init__(self, encoder: nn.Module, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(encoder.config.hidden_size, outputs)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.classifier(mean_of_tokens(self.encoder, inputs))


def logits_of(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    outputs = model(**batch)
    return getattr(outputs, "logits", outputs)


def whole_model(config: RunConfig, data: TaskData) -> tuple[nn.Module, nn.Linear]:
    if config.task == "image-classification":
        model = ViTForImageClassification.from_pretrained(config.model, num_labels=len(data.classes))
        return model, model.classifier
    model = MeanPooled(AutoModel.from_pretrained(config.model), len(data.classes))
    return model, model.classifier


def batcher(config: RunConfig, data: TaskData, examples: Examples) -> Callable[[list[int]], dict[str, Any]]:
    processor = load_model(config, data).processor
    if config.task == "image-classification":
        rows, collate = ImageExamples(examples, "RGB"), collate_images(processor)
    else:
        rows, collate = encode_texts(examples, processor, config.data.max_length), pad_texts(processor)
    return lambda indices: dict(collate([rows[i] for i in indices]))


def reference(config: RunConfig) -> torch.Tensor:
    """Train the classifier inside the whole model; return its held-out logits."""
    data = load_data(config.data, config.task)
    model, classifier = whole_model(config, data)
    model.requires_grad_(False)
    torch.manual_seed(config.training.seed)
    start = make_layer(config, classifier.in_features, classifier.out_features)
    with torch.no_grad():
        classifier.weight.copy_(start.W0)
        classifier.bias.zero_()
    if METHODS[config.method].trains_base:
        classifier.requires_grad_(True)
    else:
        lora = LoraConfig(
            r=config.lora.r, lora_alpha=config.lora.lora_alpha, target_modules=r".*classifier", bias="lora_only"
        )
        model = get_peft_model(model, lora)
        handle = rmlora.attach(model, METHODS[config.method].build(**config.method_args), seed=config.training.seed)
        with torch.no_grad():
            handle.pairs[0].A.copy_(start.handle.pairs[0].A)
    model.eval()  # the frozen part has no dropout; masks act in training only, so the adapted layer is in training
    for module in model.modules():
        if "lora" in type(module).__module__ or isinstance(module, nn.Linear):
            module.training = True
    return run_epochs(model, config, data)


def run_epochs(model: nn.Module, config: RunConfig, data: TaskData) -> torch.Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.training.lr, weight_decay=config.training.weight_decay)
    make = batcher(config, data, data.train)
    epochs = list(batch_order(len(data.train), config.training.batch_size, config.training.epochs, 0))
    steps = sum(map(len, epochs))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for epoch in epochs:
        for indices in epoch:
            batch = make(indices.tolist())
            labels = batch.pop("labels")
            nn.functional.cross_entropy(logits_of(model, batch), labels).backward()
            nn.utils.clip_grad_norm_(parameters, config.training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    batch = batcher(config, data, data.eval)(list(range(len(data.eval))))
    batch.pop("labels")
    with torch.no_grad():
        return logits_of(model.eval(), batch)


@pytest.mark.parametrize("frozen", ["zero", "random"])
@pytest.mark.parametrize("method", ["full", "lora", "rm-lora"])
@pytest.mark.parametrize("kind", ["text", "image"])
def test_cached_features_give_what_the_backbone_gives_in_every_epoch(
    kind: str, method: str, frozen: str, configure: Callable[..., RunConfig], tmp_path: Path
) -> None:
    knobs = {"weight": 1e-2, "directions": 1} if method == "rm-lora" else {}
    config = configure(kind, method=method, method_args=knobs, head={"frozen": frozen})
    train_head(config, tmp_path / "out")
    logits = load_file(tmp_path / "out" / "predictions.safetensors")["logits"]
    expected = reference(config)
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
