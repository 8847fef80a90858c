"""The inputs a model is asked about, and its answer as one tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rmlora.errors import AdapterError

ROWS = 2
LENGTH = 12
SEED = 0
_ROUNDING = 1e-6


def probe(model: Any, rows: int = ROWS, length: int = LENGTH) -> dict[str, Tensor]:
    """Draw inputs for a model: tokens with a padded second row, or images.

    Args:
        model: of transformers; not changed, except that a missing `pad_token_id` of its configuration becomes 0.
        rows: examples, >= 2.
        length: tokens of each, fewer where the model reads fewer.

    Returns:
        Keyword arguments, drawn from a generator of their own: the same for every model of one configuration.

    Raises:
        AdapterError: the model has an encoder and a decoder, or reads neither tokens nor images.
    """
    config, draw = model.config, torch.Generator().manual_seed(SEED)
    reads = model.main_input_name
    if getattr(config, "is_encoder_decoder", False):
        raise AdapterError(f"{type(model).__name__} has an encoder and a decoder, which this command cannot probe yet")
    if reads == "pixel_values" and hasattr(config, "image_size"):
        size = config.image_size if isinstance(config.image_size, (tuple, list)) else (config.image_size,) * 2
        pixels = torch.randn(rows, getattr(config, "num_channels", 3), *size, generator=draw)
        return {"pixel_values": pixels.to(model.dtype)}
    if reads != "input_ids" or not hasattr(config, "vocab_size"):
        raise AdapterError(f"{type(model).__name__} reads {reads}; this command can draw input_ids and pixel_values")
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0
    length = min(length, max(4, int(getattr(config, "max_position_embeddings", length)) - 2))
    ids = torch.randint(0, config.vocab_size, (rows, length), generator=draw)
    ids = torch.where(ids == config.pad_token_id, (ids + 1) % config.vocab_size, ids)
    mask = torch.ones_like(ids)
    ids[1, -2:], mask[1, -2:] = config.pad_token_id, 0
    return {"input_ids": ids, "attention_mask": mask}


def answer(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return what a model gives for inputs, without dropout and gradients, in float32.

    Raises:
        AdapterError: it cannot compute them.
    """
    try:
        with torch.no_grad():
            return output_of(model(**inputs, **_without_cache(model))).float()
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        if isinstance(error, AdapterError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise AdapterError(f"{type(model).__name__} cannot compute {', '.join(inputs)}: {reason}") from error


def output_of(result: Any) -> Tensor:
    """Return the one tensor of a model's result: logits, the two of a question's answer joined, or hidden states."""
    for names in (("logits",), ("start_logits", "end_logits"), ("last_hidden_state",)):
        if all(getattr(result, name, None) is not None for name in names):
            return torch.cat([getattr(result, name) for name in names], dim=-1)
    raise AdapterError(f"a {type(result).__name__} holds neither logits nor hidden states to compare")


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest magnitude of what was expected.

    Example:
        >>> distance(torch.tensor([2.0, 3.9]), torch.tensor([2.0, 4.0]))  # doctest: +ELLIPSIS
        0.02499...
    """
    if found.shape != expected.shape:
        return float("inf")
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-30))


def allowed(limit: float, effect: float) -> float:
    """Return how far outputs may be away: `limit`, or a tenth of what the adapter does if that is less; 1e-6 at least.

    Args:
        limit: of the largest output.
        effect: how far outputs with and without the adapter are apart; 0 of one that does nothing.

    Example:
        >>> allowed(1e-4, effect=0.5), allowed(1e-4, effect=1e-4), allowed(1e-4, effect=0.0)
        (0.0001, 1e-05, 1e-06)
    """
    return min(limit, max(effect / 10, _ROUNDING))


def _without_cache(model: Any) -> dict[str, bool]:
    return {"use_cache": False} if hasattr(model.config, "use_cache") else {}
