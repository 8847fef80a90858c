"""Starts of A and B that PEFT takes off the base weights (PiSSA and its kind), and adapters for the published base."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmlora.analysis.folder import open_adapter
from rmlora.analysis.stored import scale_of
from rmlora.errors import AdapterError, AttachError
from rmlora.prune_export import MOVES_BASE, with_ranks

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def subtract_start(folder: Path, start: Mapping[str, Tensor]) -> None:
    """Rewrite a saved adapter so that it fits the published base weights.

    The base was changed to W - s B0 A0, so the trained model is W + s (B A - B0 A0), which is a plain LoRA with r
    directions more: [A; A0] and [B, -B0].

    Args:
        folder: of the saved adapter; its two files are replaced.
        start: A0 and B0 by the names they have in the file.
    """
    from safetensors.torch import load_file, save_file

    config: dict[str, Any] = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    tensors = load_file(folder / _WEIGHTS)
    wanted = {}
    for name, factor in start.items():
        is_A = ".lora_A." in name
        parts = [tensors[name], factor.to(tensors[name]) if is_A else -factor.to(tensors[name])]
        tensors[name] = torch.cat(parts, dim=0 if is_A else 1).contiguous()
        if is_A:
            module = name.removeprefix("base_model.model.").rpartition(".lora_A.")[0]
            wanted[module] = len(tensors[name]), scale_of(module, config)[1]
    # the scale stays: alpha / r, or alpha / sqrt(r)
    more = max((len(factor) for name, factor in start.items() if ".lora_A." in name), default=0)
    growth = (config["r"] + more) / config["r"]
    alpha = (math.sqrt(growth) if config.get("use_rslora") else growth) * config["lora_alpha"]
    config |= {"r": config["r"] + more, "lora_alpha": alpha, "init_lora_weights": True}
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        config = with_ranks(config | {"rank_pattern": {}, "alpha_pattern": {}}, wanted)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def read_start(folder: str | Path, trained: Path, has_blocks: bool = False) -> dict[str, Tensor]:
    """Return A0 and B0 of an adapter that was saved before training.

    Args:
        folder: of that adapter.
        trained: folder of the same adapter, trained.
        has_blocks: whether the method puts more directions behind those that PEFT started.

    Raises:
        AdapterError: it is no adapter folder, or its factors are not of the trained adapter's names and shapes.
    """
    before, after = open_adapter(folder), open_adapter(trained)
    factors = [key for key in after.keys if ".lora_A." in key or ".lora_B." in key]
    missing = next((key for key in factors if key not in before.keys), None)
    if missing is not None:
        raise AdapterError(f"start={folder} has no {missing}; give the same adapter as it was saved before training")
    start, now = before.tensors(factors), after.tensors(factors)
    for key in factors:
        directions = 0 if ".lora_A." in key else 1
        then = start[key].narrow(directions, 0, 0) if has_blocks else start[key]
        if then.shape != (now[key].narrow(directions, 0, 0) if has_blocks else now[key]).shape:
            raise AdapterError(
                f"start={folder}: {key} is {tuple(start[key].shape)}, the trained one {tuple(now[key].shape)}; give "
                "the same adapter as it was saved before training"
            )
    return start


def refuse_other_start(model: nn.Module, adapter: str) -> None:
    """Raise where PEFT has taken s B0 A0 off the base, for a method that does not begin with these A0 and B0.

    Raises:
        AttachError: names how the adapter started.
    """
    for module in model.modules():
        configs = getattr(module, "peft_config", None)
        start = getattr(configs.get(adapter), "init_lora_weights", None) if isinstance(configs, dict) else None
        if isinstance(start, str) and start.startswith(MOVES_BASE):
            raise AttachError(
                f'init_lora_weights="{start}" has taken its A and B off the base weights, and this method begins with '
                "others; make the model with init_lora_weights=True"
            )
