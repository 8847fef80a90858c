"""The frozen model with random weights that all contenders share, and the batch they all see."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from rmlora.bench.settings import BenchSettings
from rmlora.bench.subjects import Kind, Subject
from rmlora.errors import ConfigError

_LOADERS: dict[Kind, str] = {
    "sequences": "AutoModelForSequenceClassification",
    "images": "AutoModelForImageClassification",
    "language": "AutoModelForCausalLM",
}


def build_base(subject: Subject, settings: BenchSettings) -> nn.Module:
    """Build a model with random weights, every weight frozen and every dropout off, in training mode.

    Args:
        subject: its geometry.
        settings: dtype of the weights, and device.

    Raises:
        ConfigError: transformers cannot build it.
    """
    import transformers

    config = subject.config()
    turn_off_dropout(config)
    config.use_cache = False
    if subject.kind == "sequences" and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0  # decoders look for the last token before the padding
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loader = getattr(transformers, _LOADERS[subject.kind])
            model: nn.Module = loader.from_config(config, dtype=getattr(torch, settings.dtype))
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f'cannot build model "{subject.name}" from its configuration: {reason}') from error
    return model.to(settings.device).requires_grad_(False).train()


def turn_off_dropout(config: Any) -> None:
    """Set every dropout probability of a configuration, and of those inside it, to zero in place.

    Example:
        >>> from transformers import BertConfig
        >>> config = BertConfig(hidden_dropout_prob=0.3)
        >>> turn_off_dropout(config)
        >>> config.hidden_dropout_prob, config.attention_probs_dropout_prob
        (0.0, 0.0)
    """
    for name, value in list(vars(config).items()):
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
        elif hasattr(value, "model_type"):
            turn_off_dropout(value)


def share(model: nn.Module) -> Any:
    """Copy a model's modules but not its tensors: the copy has the very same weights and buffers.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> twin = share(model)
        >>> twin is model, twin.weight is model.weight
        (False, True)
    """
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def make_batch(subject: Subject, settings: BenchSettings) -> dict[str, Tensor]:
    """Draw a batch that fits a model: token ids without padding, or images, with labels.

    Args:
        subject: the model.
        settings: sizes that replace the subject's own, dtype of images, and device.
    """
    draw = torch.Generator().manual_seed(0)
    config = subject.config()
    size = settings.batch or subject.batch
    labels = torch.randint(config.num_labels, (size,), generator=draw)
    if subject.kind == "images":
        sides = config.image_size if isinstance(config.image_size, (list, tuple)) else [config.image_size] * 2
        pixels = torch.randn(size, config.num_channels, *sides, generator=draw)
        batch = {"pixel_values": pixels.to(getattr(torch, settings.dtype)), "labels": labels}
    else:
        shape = (size, settings.length or subject.length or 1)
        ids = torch.randint(config.get_text_config().vocab_size, shape, generator=draw)
        own = ids.clone() if subject.kind == "language" else labels
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": own}
    return {name: value.to(settings.device) for name, value in batch.items()}
