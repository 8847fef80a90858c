"""Driving PEFT's AdaLoRA model: a loss without penalty, and saving as plain LoRA.

Attaching swaps the model's class for one whose forward pass is the base model's alone. The triplets themselves, their
forward pass and their parameters stay PEFT's.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from peft.tuners.adalora import AdaLoraModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rmlora.analysis.folder import open_adapter
from rmlora.binding import Binding
from rmlora.combine import Chain
from rmlora.errors import AttachError, RmloraWarning, StateError
from rmlora.pairs import Pair
from rmlora.prune_export import plain_form
from rmlora.saving import (
    ADAPTER_FILE,
    STATE_FILE,
    FoldedDelta,
    LoadAdapter,
    SavePretrained,
    read_lost_state,
    write_lost_state,
)

CONFIG_FILE = "adapter_config.json"


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
    kind = "LORA" if pair.E is None else "ADALORA"
    if method.adapts != kind:
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


class SaveTriplets(SavePretrained):
    """`model.save_pretrained` that writes an AdaLoRA adapter as plain LoRA, and its triplets beside it."""

    def __call__(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Let PEFT write its own form elsewhere, and move the plain form of it here."""
        if not self.is_active or not kwargs.get("is_main_process", True):
            return super().__call__(save_directory, *args, **kwargs)
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".triplets-", dir=target) as temporary:
            result = super().__call__(temporary, *args, **kwargs)
            source = self.folder_of(temporary)
            config, tensors = plain_form(open_adapter(source))
            save_file(tensors, source / ADAPTER_FILE, metadata={"format": "pt"})
            (source / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            write_lost_state(self.binding, source)  # anew: it holds the hash of the adapter's file
            for path in sorted(p for p in Path(temporary).rglob("*") if p.is_file()):
                place = target / path.relative_to(temporary)
                place.parent.mkdir(exist_ok=True)
                os.replace(path, place)
        return result

    def _folded(self) -> dict[str, Tensor]:
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


class LoadTriplets(LoadAdapter):
    """`model.load_adapter` that takes the triplets beside a plain adapter, and from it what is not LoRA."""

    def __call__(self, model_id: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Restore triplets and state; PEFT alone could not read plain LoRA into triplets."""
        name = kwargs.get("adapter_name") or (args[0] if args and isinstance(args[0], str) else "default")
        folder = Path(model_id)
        if not self.is_active or name != self.binding.adapter:
            return self.__wrapped__(model_id, *args, **kwargs)
        if not (folder / STATE_FILE).is_file():
            if not folder.is_dir() or open_adapter(folder).peft_type == "ADALORA":
                return self.__wrapped__(model_id, *args, **kwargs)
            raise StateError(
                f"{folder} holds plain LoRA without {STATE_FILE}, from which triplets cannot be read; load it into a "
                "model made with LoraConfig"
            )
        others = {key: value for key, value in load_file(folder / ADAPTER_FILE).items() if ".lora_" not in key}
        read_lost_state(self.binding, folder)
        return set_peft_model_state_dict(self.model, others, adapter_name=name)
