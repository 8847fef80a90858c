"""Putting experts on a base model: each a frozen PEFT adapter under a name of its own, none of them active."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rmlora.analysis.stored import StoredPair
from rmlora.errors import AdapterError
from rmlora.experts.expert import Expert

PREFIX = "base_model.model."


def adapter_name(index: int) -> str:
    """Name an expert as PEFT shall know it; its own name may hold dots, which PEFT forbids.

    Example:
        >>> adapter_name(0)
        'expert0'
    """
    return f"expert{index}"


def add_experts(model: nn.Module, experts: Sequence[Expert]) -> Any:
    """Wrap a model in a PEFT model with an adapter per expert.

    Only A and B are taken from an expert: its head belongs to the task it was trained on. No global generator is
    drawn from.

    Args:
        model: the base; its modules are replaced in place by PEFT's, and all its parameters are frozen.
        experts: adapters of it; ranks and modules may differ.

    Returns:
        The PEFT model, all adapters frozen, dropout of the adapters 0.

    Raises:
        AdapterError: an expert's module or shape is not the model's; nothing has been changed then.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    found = [expert.pairs() for expert in experts]
    for expert, pairs in zip(experts, found, strict=True):
        check_fits(expert, pairs, model)
    peft_model: Any = None
    with torch.random.fork_rng():
        for i, (expert, pairs) in enumerate(zip(experts, found, strict=True)):
            config = _plain_config(expert, pairs)
            if peft_model is None:
                peft_model = get_peft_model(model, config, adapter_name=adapter_name(i))
            else:
                peft_model.add_adapter(adapter_name(i), config)
            tensors = {
                f"{PREFIX}{pair.name}.{side}.weight": factor.contiguous()
                for pair in pairs
                for side, factor in (("lora_A", pair.A), ("lora_B", pair.B))
            }
            set_peft_model_state_dict(peft_model, tensors, adapter_name=adapter_name(i))
    peft_model.requires_grad_(False)
    return peft_model


def check_fits(expert: Expert, pairs: Sequence[StoredPair], model: nn.Module) -> None:
    """Refuse an expert whose modules or shapes are not the model's.

    Args:
        expert: for the message.
        pairs: its factors.
        model: the base, without adapters.

    Raises:
        AdapterError: names the first module that does not fit.
    """
    modules = dict(model.named_modules())
    for pair in pairs:
        module = modules.get(pair.name)
        if module is None:
            raise AdapterError(f'expert "{expert.path}" does not fit: the model has no module "{pair.name}"')
        weight = getattr(module, "weight", None)
        is_linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        if not is_linear or weight is None:
            raise AdapterError(
                f'expert "{expert.path}" adapts "{pair.name}", a {type(module).__name__}; experts are of linear layers'
            )
        d_out, d_in = weight.shape if isinstance(module, nn.Linear) else reversed(weight.shape)
        if (pair.B.shape[0], pair.A.shape[1]) != (d_out, d_in):
            raise AdapterError(
                f'expert "{expert.path}" does not fit: its update of "{pair.name}" is {pair.B.shape[0]} x '
                f"{pair.A.shape[1]}, the model's weight {d_out} x {d_in}"
            )


def _plain_config(expert: Expert, pairs: Sequence[StoredPair]) -> Any:
    """Say rank and scale of every module by its full name, so that no pattern has to be understood twice."""
    from peft import LoraConfig

    r, scale = max(pair.r for pair in pairs), pairs[0].scale
    odd = [pair for pair in pairs if pair.r != r or pair.scale != scale]
    return LoraConfig(
        r=r,
        lora_alpha=scale * r,
        lora_dropout=0.0,
        target_modules=[pair.name for pair in pairs],
        fan_in_fan_out=bool(expert.folder.config.get("fan_in_fan_out", False)),
        rank_pattern={f"^{pair.name}": pair.r for pair in odd},
        alpha_pattern={f"^{pair.name}": pair.scale * pair.r for pair in odd},
    )
