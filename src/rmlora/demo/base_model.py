"""The pre-trained base model: a small ViT, trained once and kept under the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rmlora.demo.digits import NUM_CLASSES, Digits
from rmlora.demo.fitting import fit
from rmlora.demo.recipe import Pretraining
from rmlora.errors import RmloraError
from rmlora.files import write_bytes


def cache_file(recipe: Pretraining) -> Path:
    """Return where the base model of this recipe is kept.

    The name holds a hash of the recipe and of the versions that could change the weights, so an old file is never
    mistaken for the right one.

    Args:
        recipe: how the model is made.

    Returns:
        A path under $XDG_CACHE_HOME, or under ~/.cache; it need not exist.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    known = json.dumps({"recipe": asdict(recipe), "versions": versions()}, sort_keys=True)
    return root / "rmlora" / f"demo-vit-{hashlib.sha256(known.encode()).hexdigest()[:16]}.safetensors"


def versions() -> dict[str, str]:
    """Return the versions of the packages the numbers depend on."""
    import peft
    import sklearn
    import transformers

    packages = {"torch": torch, "transformers": transformers, "peft": peft, "scikit-learn": sklearn}
    return {name: str(package.__version__) for name, package in packages.items()}


def load_base_model(
    digits: Digits, recipe: Pretraining, after_step: Callable[[int], None] = lambda step: None
) -> tuple[nn.Module, str]:
    """Return the base model, pre-trained on digits 0 to 4: from the cache, or made now and put there.

    Args:
        digits: the data.
        recipe: how the model is made.
        after_step: called with the number of steps done, while it is being made.

    Returns:
        The model, and a sentence on where it came from. A cache that cannot be written is no error.
    """
    model = _untrained(recipe)
    file = cache_file(recipe)
    if _restore(model, file):
        return model, f"base model from {file}"
    fit(
        model,
        digits.first,
        num_steps=recipe.num_steps,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        seed=recipe.seed,
        after_step=after_step,
    )
    return model, _keep(model, file)


def _untrained(recipe: Pretraining) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(recipe.seed)
    config = ViTConfig(
        image_size=8,
        patch_size=recipe.patch_size,
        num_channels=1,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        intermediate_size=2 * recipe.hidden_size,
        num_labels=NUM_CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model: nn.Module = ViTForImageClassification(config)
    return model


def _restore(model: nn.Module, file: Path) -> bool:
    """Fill the model from the cache; a missing or damaged file only means making it again."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Any] = load_file(str(file))
        model.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError):
        return False
    return True


def _keep(model: nn.Module, file: Path) -> str:
    from safetensors.torch import save

    try:
        write_bytes(file, save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))
    except RmloraError as error:
        return f"base model made now and not kept: {error}"
    return f"base model made now and kept as {file}"
