"""Finding, for each tensor that a PEFT adapter trains, the axis of its directions, and which tensors share them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from rmlora.errors import AttachError
from rmlora.pairs import Pair, stable_name
from rmlora.shards import is_sharded


@dataclass(frozen=True, eq=False)
class Member:
    """One tensor of an axis: where it lives, not what it holds.

    Attributes:
        owner: the module or `ParameterDict` that holds it.
        attribute: its name there.
        dims: its dimensions that count directions; an entry belongs to the directions of all of them.
    """

    owner: nn.Module
    attribute: str
    dims: tuple[int, ...]

    @property
    def parameter(self) -> nn.Parameter:
        """The live parameter."""
        return getattr(self.owner, self.attribute)  # type: ignore[no-any-return]

    @property
    def size(self) -> int:
        """How many directions it has."""
        return self.parameter.shape[self.dims[0]]

    def spread(self, kept: Tensor) -> Iterator[Tensor]:
        """Shape a mask `(size,)` for each dimension, so that it broadcasts over the tensor."""
        for dim in self.dims:
            yield kept.view([-1 if i == dim else 1 for i in range(self.parameter.dim())])


@dataclass(frozen=True, eq=False)
class Axis(Pair):
    """The directions of one module: what `Pair` is to LoRA, with any number of tensors.

    Attributes:
        members: the tensors that share the directions.
    """

    members: tuple[Member, ...]

    min_dim: ClassVar[int] = 1

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:  # type: ignore[override]
        """The live parameters of all members."""
        return tuple(member.parameter for member in self.members)

    @property
    def r(self) -> int:
        """The number of directions."""
        return self.members[0].size


# Name of a trained tensor in PEFT's layers -> which axis of the module it belongs to, and the dimension.
# Hadamard and Kronecker products sum over all pairs of directions of their two sides, so each side has its own axis.
_DIMS: dict[str, tuple[str, tuple[int, ...]]] = {
    "lora_A": ("", (0,)),
    "lora_B": ("", (1,)),
    "lora_E": ("", (0,)),
    "lora_embedding_A": ("", (0,)),
    "lora_embedding_B": ("", (1,)),
    "hada_w1_a": ("/w1", (1,)),
    "hada_w1_b": ("/w1", (0,)),
    "hada_t1": ("/w1", (0, 1)),
    "hada_w2_a": ("/w2", (1,)),
    "hada_w2_b": ("/w2", (0,)),
    "hada_t2": ("/w2", (0, 1)),
    "lokr_w1_a": ("/w1", (1,)),
    "lokr_w1_b": ("/w1", (0,)),
    "lokr_w2_a": ("/w2", (1,)),
    "lokr_w2_b": ("/w2", (0,)),
    "lokr_t2": ("/w2", (0, 1)),
    "vera_lambda_d": ("", (0,)),
    "ia3_l": ("", ()),
}
# With a core tensor PEFT keeps both outer factors with directions first.
_CORES = {"hada_w1_a": "hada_t1", "hada_w2_a": "hada_t2", "lokr_w2_a": "lokr_t2"}
_PROMPT = "prompt_encoder"


def find_axes(model: nn.Module, adapter_name: str | None = None) -> tuple[Axis, ...]:
    """Find the axes of one adapter, whatever PEFT tuner made it.

    Args:
        model: a PEFT model, or a module that contains one.
        adapter_name: which adapter; None means the only one.

    Returns:
        Axes with at least one trained tensor, in the order of `model.named_modules()`; tensors shared by two modules
        appear once. LoRA modules have the names that `attach` gives them, and so the same masks.

    Raises:
        AttachError: nothing trained has an axis of directions, there are several adapters and none was named, or the
            tensors of a module do not line up.

    Example:
        >>> from peft import IA3Config, get_peft_model
        >>> config = IA3Config(target_modules=["0"], feedforward_modules=[])
        >>> model = get_peft_model(nn.Sequential(nn.Linear(4, 3)), config)
        >>> [(axis.name, axis.r) for axis in find_axes(model)]
        [('0', 3)]
    """
    adapter = _choose(model, adapter_name)
    axes, seen = [], set()
    for path, module in model.named_modules():
        for suffix, members in _members_of(module, adapter).items():
            trained = [m for m in members if m.parameter.requires_grad and id(m.parameter) not in seen]
            if trained:
                seen |= {id(member.parameter) for member in trained}
                name = "prompt" if suffix == _PROMPT else stable_name(path) + suffix
                axes.append(Axis(name, module, adapter, (), tuple(trained)))
    for axis in axes:
        _check(axis)
    if not axes:
        raise AttachError(f'adapter "{adapter}" trains no tensor with an axis of directions; is it frozen?')
    return tuple(axes)


def left_whole(model: nn.Module, axes: tuple[Axis, ...]) -> list[str]:
    """Name the trained tensors that no axis masks: VeRA's b, DoRA's magnitudes, whole Kronecker factors, heads."""
    masked = {id(parameter) for axis in axes for parameter in axis.parameters}
    return [
        stable_name(name)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in masked and ".ranknum." not in name
    ]


def _members_of(module: nn.Module, adapter: str) -> dict[str, list[Member]]:
    """The members of one layer's axes, by the axis' suffix."""
    found: dict[str, list[Member]] = {}
    for name, (suffix, dims) in _DIMS.items():
        if adapter in _held(module, name):
            if adapter in _held(module, _CORES.get(name, "")):
                dims = (0,)
            found.setdefault(suffix, []).append(_member(_held(module, name), adapter, dims))
    if adapter in _held(module, _PROMPT):
        encoder: Any = _held(module, _PROMPT)[adapter]
        found[_PROMPT] = [Member(encoder.embedding, "weight", (0,))]
    return found


def _held(module: nn.Module, name: str) -> Any:
    """What a layer holds by adapter under this name; empty where it holds no such thing."""
    held = module._modules.get(name)
    return held if isinstance(held, nn.ModuleDict | nn.ParameterDict) else {}


def _member(held: Any, adapter: str, dims: tuple[int, ...]) -> Member:
    member = (
        Member(held, adapter, dims) if isinstance(held, nn.ParameterDict) else Member(held[adapter], "weight", dims)
    )
    if dims:
        return member
    shape = member.parameter.shape  # (IA)^3: one entry per feature, on whichever side they are
    return Member(member.owner, member.attribute, (max(range(len(shape)), key=shape.__getitem__),))


def _choose(model: nn.Module, wanted: str | None) -> str:
    names = [*_DIMS, _PROMPT]
    known = sorted({adapter for module in model.modules() for name in names for adapter in _held(module, name)})
    if not known:
        tuners = sorted({type(m).__name__ for m in model.modules() if type(m).__module__.startswith("peft.tuners.")})
        found = f"PEFT layers of type {tuners}" if tuners else f"a plain {type(model).__name__} without PEFT layers"
        raise AttachError(
            f"no axis of directions found on {found}; mask_axes knows LoRA, AdaLoRA, LoHa, LoKr, VeRA, IA3, and "
            "prompt, prefix and p-tuning"
        )
    if wanted is None and len(known) > 1:
        raise AttachError(f"{len(known)} adapters are on this model ({known}); name one with adapter_name=")
    if wanted is not None and wanted not in known:
        raise AttachError(f'no adapter "{wanted}" with an axis of directions on this model; it has {known}')
    return wanted or known[0]


def refuse_shards(axis: Axis, member: Member) -> None:
    """Raise where FSDP2 keeps a tensor of an axis in shards."""
    if is_sharded(member.parameter):
        raise AttachError(f"{axis.name}: FSDP2 shards it, and mask_axes needs whole gradients; use DDP instead")


def _check(axis: Axis) -> None:
    for member in axis.members:
        refuse_shards(axis, member)
        shape = tuple(member.parameter.shape)
        if max(member.dims) >= len(shape) or any(shape[dim] != axis.r for dim in member.dims):
            raise AttachError(
                f"{axis.name}: a tensor of shape {shape} does not line up with {axis.r} directions (a grouped "
                "convolution, or flattened by FSDP1); leave the module out of target_modules, or use DDP"
            )
