"""Driving PEFT's AdaLoRA model: a loss without penalty, and saving as plain LoRA.

Attaching swaps the model's class for one whose forward pass is the base model's alone. The triplets themselves, their
forward pass and their parameters stay PEFT's.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.adalora import AdaLoraModel
from safetensors.torch import save_file
from torch import Tensor, nn

from rmlora.analysis.folder import open_adapter
from rmlora.binding import Binding
from rmlora.combine import Chain
from rmlora.errors import AttachError, RmloraWarning, StateError
from rmlora.pairs import Factors, Pair
from rmlora.prune_export import plain_form
from rmlora.saving import ADAPTER_FILE, STATE_FILE, FoldedDelta, write_lost_state
from rmlora.staged_saving import LoadBeside, SaveStaged, write_config


class DrivenAdaLora(AdaLoraModel):  # type: ignore[misc]
    """PEFT's AdaLoRA model while a method drives it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the base model's outputs; PEFT would add its penalty to their loss, in evaluation too."""
        return self.model.forward(*args, **kwargs)

    def update_and_allocate(self, global_step: int) -> None:
        """Do nothing: the method does, after every optimizer step."""
        warnings.warn(
            "update_and_allocate was called on a model that rmlora.adalora() drives already; the call is ignored, "
            "remove it from the training code",
            RmloraWarning,
            stacklevel=2,
        )


class Drive:
    """The swap of one model's class, until `restore`."""

    def __init__(self, model: AdaLoraModel) -> None:
        self.model = model
        model.__class__ = DrivenAdaLora

    def restore(self) -> None:
        """Give the model PEFT's class back."""
        self.model.__class__ = AdaLoraModel


def drive_models(model: nn.Module, binding: Binding) -> list[Drive | FoldedTriplets]:
    """Swap the class of every AdaLoRA model inside `model`, and merge what forward hooks give where there are some."""
    driven = [Drive(module) for module in model.modules() if type(module) is AdaLoraModel]
    return [*driven, *(FoldedTriplets(pair, binding) for pair in binding.triplets)]


def suited(method: Chain, model: nn.Module, pairs: Sequence[Pair]) -> Chain:
    """Complete a method from the adapter's configuration; raise where one is for LoRA and the other for AdaLoRA."""
    pair = pairs[0]
    if method.adapts != pair.kind:
        found = f"{pair.name} is a {type(pair.layer).__name__} of PEFT's {'LoRA' if pair.E is None else 'AdaLoRA'}"
        remedy = (
            "make the model with peft.AdaLoraConfig"
            if pair.E is None
            else "attach rmlora.adalora(), or make the model with peft.LoraConfig"
        )
        raise AttachError(f"{found}, which this method cannot train; {remedy}")
    configs = (getattr(module, "peft_config", {}) for module in model.modules())
    config = next((c[pair.adapter] for c in configs if isinstance(c, dict) and pair.adapter in c), None)
    return method if config is None else method.suited_to(config)


class SaveTriplets(SaveStaged):
    """`model.save_pretrained` that writes an AdaLoRA adapter as plain LoRA, and its triplets beside it."""

    def rewrite(self, folder: Path) -> None:
        """Write the plain form of what PEFT wrote in its own, and the state anew, which holds the file's hash."""
        config, tensors = plain_form(open_adapter(folder))
        save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
        write_config(folder, config)
        write_lost_state(self.binding, folder)

    def _folded(self, live: dict[Pair, Factors] | None = None) -> dict[str, Tensor]:
        """Nothing where the plain form of what PEFT writes has the outputs; else folded factors, and values of one."""
        if not self.binding.forward_hooks:
            return {}
        paths = {id(module): name for name, module in self.model.named_modules()}
        folded: dict[str, Tensor] = {}
        for stack, factors in zip(self.binding.stacks, self.binding.fold(), strict=True):
            for row, pair in enumerate(stack.pairs):
                values = {"A": factors.A[row], "B": factors.B[row], "E": torch.ones(pair.r, 1)}
                folded |= {f"{paths[id(pair.layer)]}.lora_{side}.{pair.adapter}": v for side, v in values.items()}
        return folded


class FoldedTriplets(FoldedDelta):
    """A layer's `get_delta_weight` that merges what the method's forward pass gives; folded A holds the values."""

    def _folded(self) -> list[tuple[nn.Parameter, Tensor]]:
        E = self.pair.E
        return super()._folded() + ([] if E is None else [(E, torch.ones_like(E))])


class LoadTriplets(LoadBeside):
    """`model.load_adapter` that takes the triplets beside a plain adapter, and from it what is not LoRA."""

    def load_bare(self, folder: Path, *args: Any, **kwargs: Any) -> Any:
        """Load AdaLoRA's own form as PEFT does; PEFT alone could not read plain LoRA into triplets."""
        if not folder.is_dir() or open_adapter(folder).peft_type == "ADALORA":
            return self.__wrapped__(str(folder), *args, **kwargs)
        raise StateError(
            f"{folder} holds plain LoRA without {STATE_FILE}, from which triplets cannot be read; load it into a "
            "model made with LoraConfig"
        )
