"""Experts merged into one plain adapter: the mean of their updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rmlora.experts.adding import adapter_name, add_experts
from rmlora.experts.expert import Expert

_MERGED = "merged"


def merge_experts(model: nn.Module, experts: Sequence[Expert], heads: Sequence[str] = (), task_type: Any = None) -> Any:
    """Put the mean of the experts' updates on a model, as one frozen LoRA, with heads that are trained.

    dW = (1 / N) sum_i s_i B_i A_i, exactly: PEFT's `add_weighted_adapter` with `combination_type="cat"`, which lays
    the factors side by side, so that ranks may differ and add up. (Its "linear" averages A and B apart, and so adds
    products of one expert's B with another's A.)

    Args:
        model: the base; its modules are replaced in place.
        experts: adapters of it. One alone comes out as it is.
        heads: names of modules that are trained and saved whole.
        task_type: PEFT's name of the task.

    Returns:
        A PEFT model whose adapter `default` is frozen and whose heads are trainable.

    Raises:
        AdapterError: an expert does not fit.
    """
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    both = add_experts(model, experts)
    names = [adapter_name(i) for i in range(len(experts))]
    with torch.random.fork_rng():
        both.add_weighted_adapter(names, [1 / len(names)] * len(names), _MERGED, combination_type="cat")
        merged = both.peft_config[_MERGED]
        tensors = {
            key: tensor.clone()
            for key, tensor in get_peft_model_state_dict(both, adapter_name=_MERGED).items()
            if ".lora_" in key
        }
        base = both.unload()
        vars(base).pop("peft_config", None)  # PEFT leaves it behind, and would warn of a second adapter
        plain = LoraConfig(
            task_type=task_type,
            r=merged.r,
            lora_alpha=merged.r,
            target_modules=sorted(merged.target_modules),
            modules_to_save=list(heads) or None,
            fan_in_fan_out=merged.fan_in_fan_out,
        )
        result: Any = get_peft_model(base, plain)
        set_peft_model_state_dict(result, get_peft_model_state_dict(result) | tensors)
    for name, parameter in result.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(False)
    return result
