"""Experts of the tiny models: adapters with random factors, saved as PEFT saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from rmlora.experts import Expert, Gate, Mixture, mix_experts, open_experts
from tests import tiny

RANKS = (2, 4, 3)


def base(name: str = "bert") -> nn.Module:
    """The bare model whose weights all experts of that name share."""
    torch.manual_seed(0)
    return tiny.TINY[name].build()


def save_expert(folder: Path, name: str = "bert", seed: int = 1, **changes: Any) -> Path:
    """Save an adapter of `base(name)` whose update is not small."""
    model = tiny.adapted(name, **changes)
    draw = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if ".lora_" in key:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw)
    model.save_pretrained(folder)
    return folder


def save_experts(folder: Path, name: str = "bert", **changes: Any) -> list[Path]:
    """Save three experts of different ranks."""
    return [save_expert(folder / f"e{i}", name, i, r=r, lora_alpha=2 * r, **changes) for i, r in enumerate(RANKS)]


def alone(path: Path, name: str = "bert") -> nn.Module:
    """The base with one expert, as PEFT loads it, with the base's own head."""
    return PeftModel.from_pretrained(base(name), str(path)).eval()


def mixture(paths: list[Path], name: str = "bert", **settings: Any) -> Mixture:
    """A mixture on a fresh base, in evaluation mode."""
    return mix_experts(base(name), open_experts(paths), **settings).eval()


def stir(mixed: Mixture, seed: int = 0, scale: float = 1.0) -> Mixture:
    """Draw the gates' weights at random, so that they differ from input to input."""
    draw = torch.Generator().manual_seed(seed)
    for gate in mixed.gates:
        assert isinstance(gate, Gate)
        gate.weight.data = scale * torch.randn(gate.weight.shape, generator=draw)
        gate.log_temperature.data = torch.tensor(0.3)
    return mixed


def logits(model: nn.Module, name: str = "bert", size: int = 4, **more: Any) -> torch.Tensor:
    """What a model answers to one batch."""
    with torch.no_grad():
        return model(**tiny.inputs(name, size), **more).logits


def one(path: Path) -> Expert:
    """Open one expert."""
    return open_experts([path])[0]
