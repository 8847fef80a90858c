"""Saving: what is written is folded, plain LoRA; what folding loses stands beside it.

`save_pretrained` and `load_adapter` of the model are wrapped on the instance, because every trainer calls them there
and nowhere else. Live tensors are never touched by saving.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rmlora.binding import Binding
from rmlora.errors import RmloraWarning, StateError
from rmlora.pairs import Factors, Pair
from rmlora.shards import copy_each, gather_state, has_shards, is_sharded

STATE_FILE = "rmlora_state.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"


def watch_saving(
    model: nn.Module,
    binding: Binding,
    wrappers: tuple[type[SavePretrained | LoadAdapter], ...] | None = None,
) -> list[SavePretrained | LoadAdapter]:
    """Wrap saving and loading on `model` and on every module inside that can save an adapter."""
    wrapped: list[SavePretrained | LoadAdapter] = []
    for module in model.modules():
        if hasattr(module, "peft_config") or getattr(module, "_hf_peft_config_loaded", False):
            for wrapper in wrappers or (SavePretrained, LoadAdapter):
                if hasattr(module, wrapper.name):
                    wrapped.append(wrapper(module, binding))
    return wrapped


def warn_if_idle(binding: Binding) -> None:
    """Warn when a method never took part in an optimizer step."""
    if binding.step == 0:
        warnings.warn(
            f"the method attached to adapter {binding.adapter!r} never saw an optimizer step, so it did nothing; "
            "check that the optimizer holds the LoRA parameters of this very model",
            RmloraWarning,
            stacklevel=3,
        )


class _Wrapped:
    """A method of one model instance, replaced by this object until `restore`."""

    name = ""

    def __init__(self, model: nn.Module, binding: Binding) -> None:
        self.model = model
        self.binding = binding
        self.is_active = True
        self.__wrapped__ = getattr(model, self.name)
        model.__dict__[self.name] = self

    def restore(self) -> None:
        """Give the model its own method back, or only pass calls on where another adapter wrapped it since."""
        self.is_active = False
        if self.model.__dict__.get(self.name) is self:
            del self.model.__dict__[self.name]
            if isinstance(self.__wrapped__, _Wrapped):
                self.model.__dict__[self.name] = self.__wrapped__

    def folder_of(self, directory: str | os.PathLike[str]) -> Path:
        """Where PEFT puts this adapter's files."""
        folder = Path(directory)
        is_peft = hasattr(self.model, "base_model") and hasattr(self.model, "get_base_model")
        return folder / self.binding.adapter if is_peft and self.binding.adapter != "default" else folder


class SavePretrained(_Wrapped):
    """`model.save_pretrained` that writes folded factors, and beside them what folding loses."""

    name = "save_pretrained"

    def __call__(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Save as the model does, with folded factors in place of the live ones."""
        if self.is_active:
            warn_if_idle(self.binding)
        is_sharded_now = has_shards(self.model)
        if is_sharded_now and kwargs.get("state_dict") is None:
            kwargs["state_dict"] = gather_state(self.model)
            kwargs.setdefault("is_main_process", dist.get_rank() == 0)
        if not self.is_active or "fold" not in self.binding.method.hooks():
            return self.__wrapped__(save_directory, *args, **kwargs)
        given = kwargs.pop("state_dict", None)
        state_dict = dict(self.model.state_dict() if given is None else given)
        is_writing = kwargs.get("is_main_process", True)
        live = self._live(state_dict) if is_sharded_now and is_writing else None
        if is_writing:
            state_dict |= self._folded(live)
        result = self.__wrapped__(save_directory, *args, state_dict=state_dict, **kwargs)
        is_saved = self.binding.adapter in (kwargs.get("selected_adapters") or [self.binding.adapter])
        if is_saved and is_writing:
            write_lost_state(self.binding, self.folder_of(save_directory), live)
        return result

    def _folded(self, live: dict[Pair, Factors] | None = None) -> dict[str, Tensor]:
        names = self._names()
        folded: dict[str, Tensor] = {}
        for stack, factors in zip(self.binding.stacks, self.binding.fold(live), strict=True):
            for row, pair in enumerate(stack.pairs):
                shaped = in_their_shapes(pair, Factors(factors.A[row], factors.B[row]))
                for module, value in zip(pair.factor_modules, shaped, strict=True):
                    folded[names[id(module)]] = value
        return folded

    def _live(self, state_dict: dict[str, Tensor]) -> dict[Pair, Factors]:
        """What pairs hold, from the state to be written: the one process that writes cannot gather it alone."""
        names = self._names()
        live = {}
        for pair in self.binding.pairs:
            held = [state_dict[names[id(module)]].to(pair.parameters[0].device) for module in pair.factor_modules]
            live[pair] = Factors(*(value.detach().flatten(1) for value in held))
        return live

    def _names(self) -> dict[int, str]:
        """Names of the factors' weights in the model's state, by the modules that hold them."""
        return {id(module): f"{name}.weight" for name, module in self.model.named_modules()}


class LoadAdapter(_Wrapped):
    """`model.load_adapter` that prefers our state beside a folded adapter."""

    name = "load_adapter"

    def __call__(self, model_id: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Load as the model does, then restore live factors and state if they stand beside the adapter."""
        result = self.__wrapped__(model_id, *args, **kwargs)
        name = kwargs.get("adapter_name") or (args[0] if args and isinstance(args[0], str) else "default")
        folder = Path(model_id)
        if self.is_active and name == self.binding.adapter and (folder / STATE_FILE).is_file():
            read_lost_state(self.binding, folder)
        return result


def in_their_shapes(pair: Pair, folded: Factors) -> tuple[Tensor, Tensor]:
    """Return folded factors of one pair in the shapes and dtypes of its parameters, but for the number of directions.

    Args:
        pair: whose parameters; for a convolution they have more than two dimensions.
        folded: A `(r + k, d_in)` and B `(d_out, r + k)`.
    """
    A, B = pair.parameters
    shaped = folded.A.reshape(-1, *A.shape[1:]), folded.B.reshape(len(B), -1, *B.shape[2:])
    return shaped[0].to(A.dtype), shaped[1].to(B.dtype)


def write_lost_state(binding: Binding, folder: Path, live: dict[Pair, Factors] | None = None) -> None:
    """Write live factors and the method's state beside a folded adapter, with the adapter file's hash.

    The file appears whole or not at all.

    Args:
        binding: whose.
        folder: holds the adapter file.
        live: what its pairs hold, where that was gathered from shards; None reads it.
    """
    tensors: dict[str, Tensor] = {}
    for stack, state in zip(binding.stacks, binding.state, strict=True):
        for row, pair in enumerate(stack.pairs):
            own = {f"{pair.name}|{key}": value.detach()[row].clone() for key, value in state.items()}
            tensors |= own
            A, B = pair.parameters if live is None else in_their_shapes(pair, live[pair])
            tensors |= {f"{pair.name}|A": A.detach().contiguous(), f"{pair.name}|B": B.detach().contiguous()}
            if pair.E is not None:
                tensors[f"{pair.name}|E"] = pair.E.detach().contiguous()
    metadata = {"adapter_sha256": _sha256(folder / ADAPTER_FILE), "step": str(binding.step), "seed": str(binding.seed)}
    unfinished = folder / f".{STATE_FILE}.tmp"
    save_file(tensors, unfinished, metadata=metadata)
    os.replace(unfinished, folder / STATE_FILE)


@torch.no_grad()
def read_lost_state(binding: Binding, folder: Path) -> None:
    """Restore live factors and the method's state from beside a folded adapter.

    Raises:
        StateError: the file is damaged, lacks a module, or belongs to another adapter file.
    """
    path = folder / STATE_FILE
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise StateError(f"{path} is damaged ({error}); delete it to continue from the plain adapter") from None
    if metadata.get("adapter_sha256") != _sha256(folder / ADAPTER_FILE):
        raise StateError(
            f"{path} does not belong to {ADAPTER_FILE} beside it (its hash differs); "
            "delete it to continue from the plain adapter"
        )
    missing = [pair.name for pair in binding.pairs if f"{pair.name}|A" not in tensors]
    if missing:
        raise StateError(f"{path} has no factors for {missing[0]} ({len(missing)} modules in all); wrong adapter?")
    for pair in binding.pairs:
        for parameter, side in zip(pair.parameters, ("A", "B"), strict=True):
            copy_each([parameter], [tensors[f"{pair.name}|{side}"]])
        if pair.E is not None:
            pair.E.copy_(tensors[f"{pair.name}|E"])
    for stack, state in zip(binding.stacks, binding.state, strict=True):
        for key, value in state.items():
            for row, pair in enumerate(stack.pairs):
                value.detach()[row] = tensors[f"{pair.name}|{key}"]


class FoldedDelta:
    """A layer's `get_delta_weight` that merges what the method's forward pass gives, not the bare factors."""

    def __init__(self, pair: Pair, binding: Binding) -> None:
        self.pair = pair
        self.binding = binding
        self.__wrapped__ = pair.layer.get_delta_weight
        pair.layer.__dict__["get_delta_weight"] = self

    def __call__(self, adapter: str) -> Tensor:
        """Return s B A of the folded factors."""
        if adapter != self.pair.adapter:
            return self.__wrapped__(adapter)  # type: ignore[operator,no-any-return]
        if any(map(is_sharded, self.pair.parameters)):
            raise StateError(f"{self.pair.name}: FSDP2 shards it; save with save_pretrained and merge in one process")
        folded = self._folded()
        live = [parameter.data for parameter, _ in folded]
        try:
            for parameter, value in folded:
                parameter.data = value
            return self.__wrapped__(adapter)  # type: ignore[operator,no-any-return]
        finally:
            for (parameter, _), data in zip(folded, live, strict=True):
                parameter.data = data

    def restore(self) -> None:
        """Give the layer its own method back."""
        self.pair.layer.__dict__.pop("get_delta_weight", None)

    def _folded(self) -> list[tuple[nn.Parameter, Tensor]]:
        return list(zip(self.pair.parameters, in_their_shapes(self.pair, self._factors()), strict=True))

    def _factors(self) -> Factors:
        for stack, factors in zip(self.binding.stacks, self.binding.fold(), strict=True):
            if self.pair in stack.pairs:
                row = stack.pairs.index(self.pair)
                return Factors(factors.A[row], factors.B[row])
        raise StateError(f"{self.pair.name} is no longer part of adapter {self.binding.adapter!r}; detach first")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else json.dumps(None)
