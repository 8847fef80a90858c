"""From checked examples to what a model takes: token ids or pixels, in padded batches."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch

from rmlora.errors import DataError
from rmlora.tasks.data import Examples

Collate = Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]


def encode_texts(examples: Examples, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """Tokenise texts or pairs of texts.

    Args:
        examples: with one or two input columns.
        tokenizer: of the model.
        max_length: tokens kept of an example; of a pair the longer text is cut first.

    Returns:
        One dictionary per example: the tokenizer's fields, unpadded, and `labels`.
    """
    if len(examples) == 0:
        return []
    fields = tokenizer(*examples.inputs, truncation=True, max_length=max_length)
    names = [name for name in fields if name != "overflow_to_sample_mapping"]
    return [{name: fields[name][i] for name in names} | {"labels": label} for i, label in enumerate(examples.labels)]


def pad_texts(tokenizer: Any) -> Collate:
    """Return a collate function that pads a batch of encoded texts to its longest."""
    from transformers import DataCollatorWithPadding

    return DataCollatorWithPadding(tokenizer)  # type: ignore[no-any-return]


class ImageExamples(torch.utils.data.Dataset[dict[str, Any]]):
    """Images, opened when they are asked for."""

    def __init__(self, examples: Examples, mode: str) -> None:
        self.examples = examples
        self.mode = mode

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = to_image(self.examples.inputs[0][index])
        return {"image": image.convert(self.mode), "labels": self.examples.labels[index]}


def to_image(value: Any) -> Any:
    """Open an image, given as a path, encoded bytes, uint8 array or already as a PIL image.

    Raises:
        DataError: it is none of these, or cannot be decoded.

    Example:
        >>> import numpy as np
        >>> to_image(np.zeros((4, 6), dtype=np.uint8)).size
        (6, 4)
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(value, Image.Image):
        return value
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    try:
        if isinstance(value, bytes):
            return Image.open(io.BytesIO(value))
        if isinstance(value, str):
            return Image.open(value)
        if getattr(value, "dtype", None) == "uint8" and value.ndim in (2, 3):
            return Image.fromarray(value[..., 0] if value.shape[-1] == 1 and value.ndim == 3 else value)
    except (OSError, UnidentifiedImageError, TypeError) as error:
        raise DataError(f"cannot decode an image: {error}") from error
    found = f"{getattr(value, 'dtype', type(value).__name__)} {getattr(value, 'shape', '')}".strip()
    raise DataError(f"images must be uint8 arrays (height, width[, 3]), files or encoded bytes, got {found}")


def collate_images(processor: Any) -> Collate:
    """Return a collate function that resizes and normalises a batch of images as the model expects."""

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixels = processor([row["image"] for row in batch], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in batch])}

    return collate


def head_of(examples: Any, count: int, seed: int) -> Any:
    """Return a seeded sample of `count` encoded examples, the same each epoch; all if there are fewer."""
    if count >= len(examples):
        return examples
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:count]
    return torch.utils.data.Subset(examples, sorted(order.tolist()))
