"""The features of a run's examples: from the cache, or computed and put there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmlora.config import RunConfig
from rmlora.errors import ConfigError
from rmlora.heads.cache import cache_file, cache_folder, keep, recall
from rmlora.modeling import check_model_name
from rmlora.run.environment import hash_file
from rmlora.tasks.data import Examples, TaskData

FORMAT = 1
"""Part of every cache key: raise it when the meaning of a feature changes."""

_MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.py")
_VERSIONS = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class Features:
    """What a classification layer is trained on.

    Attributes:
        train: `(n, d)` float32, standardised if the configuration says so.
        eval: `(m, d)`, shifted and scaled by the same numbers.
        shift: `(d,)` subtracted from each feature; 0 where not standardised.
        spread: `(d,)` divided by; 1 where not standardised.
        backbone: parameters of the model that computed them, without a classification layer.
        computed: whether the backbone had to run; False if all came from the cache.
    """

    train: Tensor
    eval: Tensor
    shift: Tensor
    spread: Tensor
    backbone: int
    computed: bool


@dataclass(frozen=True)
class FeatureSize:
    """What can be said of features without computing them.

    Attributes:
        d: numbers per example.
        backbone: parameters of the model that computes them, without a classification layer.
        missing: examples whose features are not in the cache.
    """

    d: int
    backbone: int
    missing: int


def load_features(config: RunConfig, data: TaskData, tell: Callable[[str], None] = lambda text: None) -> Features:
    """Return the features of both parts of the data.

    Each part has a file of its own, named by a hash of the model's files (or Hub commit), of the part's inputs and of
    the settings and versions a feature depends on; a file that is missing or damaged is computed anew.

    Args:
        config: of the run.
        data: checked examples.
        tell: told in a line what is computed, before it is.

    Raises:
        ConfigError: the model cannot be loaded, or has no such feature.
    """
    parts = (data.train, data.eval)
    files, found = _recall(config, parts)
    missing = [i for i, each in enumerate(found) if each is None]
    if missing:
        from rmlora.heads.backbone import compute_features

        count = sum(len(parts[i]) for i in missing)
        tell(f"Computing the features of {count} examples, once; they are kept in {cache_folder()}")
        tensors, backbone = compute_features(config, data, [parts[i] for i in missing])
        for i, tensor in zip(missing, tensors, strict=True):
            found[i] = (tensor, {"backbone": str(backbone)})
            keep(files[i], tensor, {"backbone": str(backbone), "model": config.model})
    train, held_out = (each[0] for each in found if each is not None)
    backbone = next(int(each[1]["backbone"]) for each in found if each is not None)
    return standardise(train, held_out, config.head.standardise, backbone, bool(missing))


def size_features(config: RunConfig, data: TaskData) -> FeatureSize:
    """Find out how large features are: from the cache, or from one example; nothing is written.

    Args:
        config: of the run.
        data: checked examples.

    Raises:
        ConfigError: the model cannot be loaded, or has no such feature.
    """
    parts = (data.train, data.eval)
    _, found = _recall(config, parts)
    missing = sum(len(part) for part, each in zip(parts, found, strict=True) if each is None)
    known = next((each for each in found if each is not None), None)
    if known is not None:
        return FeatureSize(known[0].shape[1], int(known[1]["backbone"]), missing)
    from rmlora.heads.backbone import compute_features

    first = Examples(tuple(column[:1] for column in data.train.inputs), data.train.labels[:1])
    (features,), backbone = compute_features(config, data, [first])
    return FeatureSize(features.shape[1], backbone, missing)


def standardise(train: Tensor, held_out: Tensor, wanted: bool, backbone: int, computed: bool) -> Features:
    """Shift and scale each feature to mean 0 and deviation 1 over the training part; a constant one is only shifted.

    Example:
        >>> x = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
        >>> standardise(x, x[:1], True, 0, False).eval
        tensor([[-1.,  0.]])
    """
    shift, spread = torch.zeros(train.shape[1]), torch.ones(train.shape[1])
    if wanted:
        shift, deviation = train.mean(0), train.std(0, correction=0)
        spread = torch.where(deviation > 0, deviation, spread)
    return Features((train - shift) / spread, (held_out - shift) / spread, shift, spread, backbone, computed)


def hash_inputs(examples: Examples) -> str:
    """Hash the inputs of examples, in order, whatever they are: texts, arrays, files or opened images."""
    digest = hashlib.sha256()
    for column in examples.inputs:
        digest.update(b"column\0")
        for value in column:
            content = _content(value)
            digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def hash_model(name: str, trust_remote_code: bool = False) -> Any:
    """Identify a model: the hashes of its files if it is a folder, else its Hub commit.

    Raises:
        ConfigError: the Hub has no such model, or cannot be reached.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        files = sorted({p for pattern in _MODEL_FILES for p in folder.glob(pattern)})
        return {p.name: _hash(p, p.stat().st_size, p.stat().st_mtime_ns) for p in files}
    from transformers import AutoConfig

    try:
        known = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f'cannot load the model of "{name}": {reason}') from error
    return {"name": name, "commit": getattr(known, "_commit_hash", None)}


def _recall(
    config: RunConfig, parts: Sequence[Examples]
) -> tuple[list[Path], list[tuple[Tensor, dict[str, str]] | None]]:
    """Each part's file in the cache, and what it holds, or None."""
    check_model_name(config.model)
    known = _settings(config)
    files = [cache_file(known | {"inputs": hash_inputs(part)}) for part in parts]
    return files, [recall(file, len(part)) for file, part in zip(files, parts, strict=True)]


def _settings(config: RunConfig) -> dict[str, Any]:
    is_text = config.task != "image-classification"
    return {
        "format": FORMAT,
        "model": hash_model(config.model, config.trust_remote_code),
        "features": ("mean" if is_text else "classifier") if config.head.features == "auto" else config.head.features,
        "max_length": config.data.max_length if is_text else None,
        "versions": {name: version(name) for name in _VERSIONS},
    }


@lru_cache(maxsize=256)
def _hash(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file once per process as long as it does not change: a grid asks hundreds of times."""
    return hash_file(path)


def _content(value: Any) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        # of an image this is a path; a text that happens to name a file hashes like any other text
        is_image = value.lower().endswith((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"))
        file = Path(value) if is_image else None
        return hash_file(file).encode() if file is not None and file.is_file() else value.encode()
    shape = f"{getattr(value, 'mode', '')}{getattr(value, 'dtype', '')}{getattr(value, 'shape', '')}"
    shape += str(getattr(value, "size", ""))
    return shape.encode() + bytes(value.tobytes())
