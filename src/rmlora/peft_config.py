"""RMLoraConfig: RM-LoRA for tools that accept nothing but a PEFT config."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import nn

from rmlora.binding import Binding
from rmlora.bound_layers import remember
from rmlora.errors import AttachError, StateError
from rmlora.files import write_text
from rmlora.methods import rm_lora
from rmlora.pairs import adapters_of, make_pair, stable_name
from rmlora.saving import warn_if_idle

CONFIG_FILE = "rmlora_config.json"


class ReusedLayer:
    """A flag that PEFT reads only where it reuses a layer without calling us; reading it is the error."""

    def __bool__(self) -> bool:
        raise AttachError(
            "PEFT made this adapter on layers that already exist or that only it knows how to make, without calling "
            "RMLoraConfig; use a plain LoraConfig and rmlora.attach(model, rmlora.rm_lora(...), adapter_name=...)"
        )


@dataclass
class RMLoraConfig(LoraConfig):  # type: ignore[misc]
    """A `LoraConfig` whose adapter trains by RM-LoRA: both lines of `get_peft_model` and `attach` in one.

    For tools that take a `peft_config=` and build the model themselves. What is saved is a plain LoRA config, which
    loads anywhere, and `rmlora_config.json` beside it, from which this class reloads.

    Args:
        weight: strength of the orthogonality penalty, >= 0; None takes the preset's.
        directions: directions that learn per step, a count or a fraction of r; None takes the preset's.
        preset: "paper", "authors" or "strict".
        seed: seed of the masks.

    Raises:
        MethodError: a value is out of range.
        AttachError: PEFT reuses layers (a second adapter on the same modules); use `rmlora.attach` there.

    Example:
        >>> from peft import get_peft_model
        >>> model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), RMLoraConfig(r=4, target_modules=["0"]))
        >>> import rmlora
        >>> len(rmlora.attached(model)[0])
        1
    """

    weight: float | None = field(default=None, metadata={"help": "strength of the orthogonality penalty, >= 0"})
    directions: int | float | None = field(default=None, metadata={"help": "learning directions, count or fraction"})
    preset: str = field(default="paper", metadata={"help": "paper, authors or strict"})
    seed: int = field(default=0, metadata={"help": "seed of the masks"})
    is_copy: bool = field(default=False, repr=False, metadata={"help": "set on the config once PEFT has used it"})
    reused: Any = field(default=False, init=False, repr=False, metadata={"is_lora_variant": True})

    own_fields: ClassVar[tuple[str, ...]] = ("weight", "directions", "preset", "seed")

    def __post_init__(self) -> None:
        super().__post_init__()
        # `add_weighted_adapter` copies a config that was in use, at another rank: such an adapter is not trained.
        if self.is_copy and isinstance(self.directions, int):
            self.directions = min(self.directions, self.r)
        self.reused = False if self.is_copy else ReusedLayer()
        rm_lora(self.weight, self.directions, preset=self.preset)  # type: ignore[arg-type]
        self._bindings: dict[str, Binding] = {}
        if not self.is_copy:
            self._register_custom_module(dict.fromkeys(_layer_types(), self._make_layer))

    def _make_layer(self, target: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> nn.Module:
        """Let PEFT make the layer it would have made, and take its pair (attention has two, one inside)."""
        plain = copy.copy(self)
        plain.__class__ = LoraConfig
        plain._custom_modules = None
        layer: nn.Module = LoraModel._create_new_module(plain, adapter_name, target, **kwargs)
        self.fan_in_fan_out: bool = plain.fan_in_fan_out
        name = stable_name(kwargs.get("target_name", ""))
        inside = [(".".join(filter(None, (name, path))), module) for path, module in layer.named_modules()]
        pairs = [make_pair(path, module, adapter_name) for path, module in inside if adapters_of(module)]
        if adapter_name not in self._bindings:
            method = rm_lora(self.weight, self.directions, preset=self.preset)  # type: ignore[arg-type]
            self._bindings[adapter_name] = Binding(method, adapter_name, self.seed)
        self._bindings[adapter_name].add(pairs)
        for pair in pairs:
            remember(pair, self._bindings[adapter_name])
        self.is_copy = True
        return layer

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain data, our fields included, for logs."""
        return {key: value for key, value in super().to_dict().items() if key not in ("is_copy", "reused")}

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write a plain LoRA config, and our fields beside it."""
        for binding in self._bindings.values():
            warn_if_idle(binding)
        own = {name: getattr(self, name) for name in self.own_fields}
        values = {key: value for key, value in self.to_dict().items() if key not in self.own_fields}
        LoraConfig(**values).save_pretrained(save_directory, **kwargs)
        write_text(Path(save_directory) / CONFIG_FILE, json.dumps(own, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> RMLoraConfig:
        """Read the plain config and our fields beside it.

        Raises:
            StateError: our file is missing or not readable; the adapter is plain LoRA then.
        """
        plain = LoraConfig.from_pretrained(pretrained_model_name_or_path, **kwargs)
        path = Path(pretrained_model_name_or_path) / (kwargs.get("subfolder") or "") / CONFIG_FILE
        try:
            own = json.loads(path.read_text())
            chosen = {name: own[name] for name in cls.own_fields}
        except (OSError, ValueError, KeyError) as error:
            raise StateError(f"{path} cannot be read ({error}); load the adapter with LoraConfig instead") from None
        names = {f.name for f in dataclasses.fields(LoraConfig) if f.init}
        return cls(**{name: getattr(plain, name) for name in names}, **chosen)

    def __deepcopy__(self, memo: dict[int, Any]) -> RMLoraConfig:
        """Copy as data; the copy has no bindings until PEFT uses it."""
        names = {f.name for f in dataclasses.fields(self) if f.init}
        return type(self)(**{name: copy.deepcopy(getattr(self, name), memo) for name in names})


def _layer_types() -> list[type[nn.Module]]:
    """The layer types that PEFT adapts itself and whose adapter we take; quantised linears subclass the first."""
    types: list[type[nn.Module]] = [nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention]
    try:
        from transformers.pytorch_utils import Conv1D
    except ImportError:
        return types
    return [*types, Conv1D]
