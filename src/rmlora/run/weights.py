"""Writing what a run learnt: a plain PEFT adapter, or the whole model where there is none."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmlora.pairs import Pair
from rmlora.run.plan import Plan

# Initialisations that move part of the base weight into A and B; such an adapter fits no one else's base as it is.
_MOVES_BASE = ("pissa", "olora")
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def initial_factors(plan: Plan) -> dict[str, Tensor]:
    """Keep A0 and B0 if the initialisation changed the base weights; to be called before training.

    Returns:
        Copies by the names of a saved adapter; empty where the base is as it was published.
    """
    if plan.config.lora.init_lora_weights not in _MOVES_BASE or plan.config.init_adapter is not None:
        return {}
    return {name: factor for pair in plan.pairs for name, factor in _named(pair).items()}


def save_weights(plan: Plan, initial: Mapping[str, Tensor], folder: Path) -> list[str]:
    """Save the trained weights into a folder: written beside it first, then moved in file by file.

    Args:
        plan: of the run; its model is not changed.
        initial: from `initial_factors`.
        folder: the output folder, which exists.

    Returns:
        Names of the files that were written.
    """
    with tempfile.TemporaryDirectory(prefix=".weights-", dir=folder) as temporary:
        if plan.handle is not None:
            plan.model.save_pretrained(temporary, save_embedding_layers=False)
            (Path(temporary) / "README.md").unlink(missing_ok=True)  # PEFT's empty template; ours is written later
            if initial:
                subtract_initial(Path(temporary), initial)
        else:
            plan.model.save_pretrained(temporary)
            plan.processor.save_pretrained(temporary)
        files = sorted(p for p in Path(temporary).iterdir() if p.is_file())
        for file in files:
            os.replace(file, folder / file.name)
    return [file.name for file in files]


def subtract_initial(folder: Path, initial: Mapping[str, Tensor]) -> None:
    """Rewrite a saved adapter so that it fits the published base weights.

    The base was changed to W - s B0 A0, so the trained model is W + s (B A - B0 A0), which is a plain LoRA with r
    directions more: [A; A0] and [B, -B0].

    Args:
        folder: of the saved adapter; its two files are replaced.
        initial: A0 and B0 by the names they have in the file.
    """
    from safetensors.torch import load_file, save_file

    config: dict[str, Any] = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    tensors = load_file(folder / _WEIGHTS)
    for name, factor in initial.items():
        is_A = ".lora_A." in name
        parts = [tensors[name], factor.to(tensors[name]) if is_A else -factor.to(tensors[name])]
        tensors[name] = torch.cat(parts, dim=0 if is_A else 1).contiguous()
    # the scale stays: alpha / r, or alpha / sqrt(r)
    more = max((len(factor) for name, factor in initial.items() if ".lora_A." in name), default=0)
    growth = (config["r"] + more) / config["r"]
    alpha = (math.sqrt(growth) if config.get("use_rslora") else growth) * config["lora_alpha"]
    config |= {"r": config["r"] + more, "lora_alpha": alpha, "init_lora_weights": True}
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _named(pair: Pair) -> dict[str, Tensor]:
    return {
        f"base_model.model.{pair.name}.{side}.weight": parameter.detach().cpu().clone()
        for side, parameter in zip(("lora_A", "lora_B"), pair.parameters, strict=True)
    }
