"""Factor pairs: finding the (A, B) of every adapted module of a PEFT model, and reading several as a stack."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from rmlora.draws import words_of
from rmlora.errors import AttachError
from rmlora.shards import whole

_WRAPPERS = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True)
class Factors:
    """The two factors of LoRA modules of one shape, stacked.

    Attributes:
        A: `(n, r, d_in)`; row i of each matrix is one half of direction i.
        B: `(n, d_out, r)`; column i of each matrix is the other half.
    """

    A: Tensor
    B: Tensor

    def joined(self, other: Factors) -> Factors:
        """Return the directions of both, these first, so that B A is the sum of both products.

        Example:
            >>> one = Factors(torch.ones(1, 2), torch.ones(3, 1))
            >>> one.joined(Factors(torch.ones(4, 2), torch.zeros(3, 4))).B.shape
            torch.Size([3, 5])
        """
        return Factors(torch.cat([self.A, other.A], dim=-2), torch.cat([self.B, other.B], dim=-1))


@dataclass(frozen=True)
class Kept:
    """Which directions get a gradient this step.

    Attributes:
        A: boolean `(n, r)`; False freezes that row of A.
        B: boolean `(n, r)`; False freezes that column of B.
        count: how many are True in every row of both, where that is one number and known.
    """

    A: Tensor
    B: Tensor
    count: int | None = None


@dataclass(frozen=True, eq=False)
class Pair:
    """One adapted module: where its A and B live, not what they hold.

    Parameters are looked up through modules at every use, because loading with `assign=True`,
    sharding and dtype casts replace parameter objects.

    Attributes:
        name: the module's name without wrapper, PEFT and adapter prefixes; the same on every machine.
        layer: PEFT's layer around the frozen module.
        adapter: the adapter's name.
        factor_modules: the modules that hold A and B; empty for embeddings and AdaLoRA, which hold bare parameters.
    """

    name: str
    layer: nn.Module
    adapter: str
    factor_modules: tuple[nn.Module, ...]

    min_dim: ClassVar[int] = 2
    """Dimensions that A and B have at least, where nothing flattened them."""

    @property
    def kind(self) -> str:
        """The PEFT type of its adapter."""
        return "LORA" if self.E is None else "ADALORA"

    @property
    def shapes(self) -> Hashable:
        """What pairs of one stack share."""
        return tuple(parameter.shape for parameter in self.parameters)

    @property
    def parameters(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The live parameters of A and B, in their own shapes (4-d for convolutions)."""
        if self.factor_modules:
            return self.factor_modules[0].weight, self.factor_modules[1].weight  # type: ignore[return-value]
        if self.E is not None:
            return self.layer.lora_A[self.adapter], self.layer.lora_B[self.adapter]  # type: ignore[index,return-value]
        factors = self.layer.lora_embedding_A, self.layer.lora_embedding_B
        return factors[0][self.adapter], factors[1][self.adapter]  # type: ignore[index,return-value]

    @property
    def E(self) -> nn.Parameter | None:  # noqa: N802
        """AdaLoRA's values `(r, 1)`, with which A and B form triplets; None for LoRA."""
        values = getattr(self.layer, "lora_E", {})
        return values[self.adapter] if self.adapter in values else None  # noqa: SIM401 - a ParameterDict

    @property
    def A(self) -> Tensor:  # noqa: N802
        """A as a matrix `(r, d_in)`; shares memory with the parameter unless that is sharded."""
        return whole(self.parameters[0]).flatten(1)

    @property
    def B(self) -> Tensor:  # noqa: N802
        """B as a matrix `(d_out, r)`; likewise."""
        return whole(self.parameters[1]).flatten(1)

    @property
    def r(self) -> int:
        """The number of directions."""
        return self.parameters[0].shape[0]

    @property
    def scale(self) -> float:
        """The factor s of `y = W0 x + s B A x`: alpha / r, or alpha / sqrt(r) under rsLoRA."""
        if self.E is not None:  # PEFT keeps alpha alone there, and divides by the first rank
            return float(self.layer.scaling[self.adapter] / (self.layer.ranknum[self.adapter] + 1e-5))  # type: ignore[index]
        return float(self.layer.scaling[self.adapter])  # type: ignore[index]

    @property
    def calls_modules(self) -> bool:
        """Whether the forward pass calls modules for A and B, rather than reading the parameters."""
        # The second is the output projection inside `nn.MultiheadAttention`, whose own forward is never called.
        layers = self.layer, self.layer.get_base_layer()  # type: ignore[operator]
        uncalled = MultiheadAttention, NonDynamicallyQuantizableLinear
        return bool(self.factor_modules) and not any(isinstance(layer, uncalled) for layer in layers)

    @property
    def variant(self) -> str | None:
        """PEFT's name for a changed forward pass (DoRA and others), or None for plain LoRA."""
        variant = getattr(self.layer, "lora_variant", {}).get(self.adapter)
        return None if variant is None else type(variant).__name__

    @cached_property
    def words(self) -> tuple[int, int]:
        """Two 32-bit words that stand for the pair in every random draw: blake2b of its name."""
        return words_of(self.name)


@dataclass(frozen=True, eq=False)
class Stack:
    """Pairs of one shape, dtype and device, read as two tensors with a leading pair dimension n.

    A and B are copies taken at the first access, so a Stack is a snapshot: take a new one with
    `renew` after the parameters moved.

    Attributes:
        pairs: the n pairs.
        keys: int64 `(n, 2)`; the pairs' words on their device.
        seed: the seed given to `attach`, for what a link draws once, in `init`.
    """

    pairs: tuple[Pair, ...]
    keys: Tensor
    seed: int = 0

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def r(self) -> int:
        """The number of directions of each pair."""
        return self.pairs[0].r

    @property
    def names(self) -> tuple[str, ...]:
        """The pairs' names."""
        return tuple(pair.name for pair in self.pairs)

    @cached_property
    def A(self) -> Tensor:  # noqa: N802
        """All A, `(n, r, d_in)`, detached."""
        return torch.stack([pair.A.detach() for pair in self.pairs])

    @cached_property
    def B(self) -> Tensor:  # noqa: N802
        """All B, `(n, d_out, r)`, detached."""
        return torch.stack([pair.B.detach() for pair in self.pairs])

    @cached_property
    def scale(self) -> Tensor:
        """The scales s, `(n,)` float64 on the CPU."""
        return torch.tensor([pair.scale for pair in self.pairs], dtype=torch.float64)

    @property
    def factors(self) -> Factors:
        """A and B together."""
        return Factors(self.A, self.B)

    def renew(self) -> Stack:
        """Return the same pairs, to be read anew."""
        return Stack(self.pairs, self.keys, self.seed)

    def take(self, rows: Sequence[int]) -> Stack:
        """Return the pairs at `rows` as a stack of their own."""
        return Stack(tuple(self.pairs[row] for row in rows), self.keys[list(rows)], self.seed)


def stable_name(name: str) -> str:
    """Return a module's name without what wrappers, PEFT and the position of the root add to it.

    Example:
        >>> stable_name("module.base_model.model.bert.encoder.layer.0.attention.self.query")
        'bert.encoder.layer.0.attention.self.query'
    """
    name = _WRAPPERS.sub("", name)
    _, peft, inside = name.rpartition("base_model.model.")
    return inside if peft else name.removeprefix("module.")


def find_pairs(model: nn.Module, adapter_name: str | None = None) -> tuple[Pair, ...]:
    """Find the factor pairs of one LoRA adapter.

    Args:
        model: a PEFT model, or any module that contains PEFT's LoRA layers.
        adapter_name: which adapter; None means the active one.

    Returns:
        The pairs in the order of `model.named_modules()`; parameters shared by two modules appear once.

    Raises:
        AttachError: there are no LoRA modules, several adapters are active and none was named, the
            adapter does not exist, or its layers cannot be treated as pairs (`target_parameters`,
            grouped convolutions).
    """
    layers = {name: module for name, module in model.named_modules() if adapters_of(module)}
    if not layers:
        raise AttachError(_nothing_found(model))
    adapter = adapter_name or _only_active(layers.values())
    known = sorted({name for layer in layers.values() for name in adapters_of(layer)})
    if adapter not in known:
        raise AttachError(f'no LoRA adapter "{adapter}" on this model; it has {known}')
    pairs: dict[tuple[int, int], Pair] = {}
    for name, layer in layers.items():
        if adapter in adapters_of(layer):
            pair = make_pair(stable_name(name), layer, adapter)
            A, B = pair.parameters
            pairs.setdefault((id(A), id(B)), pair)
    return tuple(pairs.values())


def make_pair(name: str, layer: nn.Module, adapter: str) -> Pair:
    """Return the pair of one PEFT layer, or say why it has none."""
    if isinstance(layer, ParamWrapper):
        raise AttachError(
            f"{name} was adapted through target_parameters, whose factors are not one (A, B) per module; "
            "adapt nn.Linear modules through target_modules instead"
        )
    if adapter in getattr(layer, "lora_embedding_A", {}) or adapter in getattr(layer, "lora_E", {}):
        return Pair(name, layer, adapter, ())
    pair = Pair(name, layer, adapter, (layer.lora_A[adapter], layer.lora_B[adapter]))  # type: ignore[index,arg-type]
    is_whole = all(parameter.dim() >= pair.min_dim for parameter in pair.parameters)  # others are refused by name later
    if is_whole and pair.B.shape[1] != pair.r:
        raise AttachError(
            f"{name} is a grouped convolution: its B has {pair.B.shape[1]} columns for {pair.r} rows of A, so rows and "
            "columns do not form directions; leave it out of target_modules"
        )
    return pair


def adapters_of(module: nn.Module) -> set[str]:
    """Return the names of the adapters whose A and B this module holds as LoRA does."""
    names: set[str] = set()
    factors = getattr(module, "lora_A", None)
    if isinstance(factors, nn.ModuleDict) or hasattr(module, "lora_E"):
        names |= set(factors.keys())  # type: ignore[union-attr]
    embeddings = getattr(module, "lora_embedding_A", None)
    if isinstance(embeddings, nn.ParameterDict):
        names |= set(embeddings.keys())
    return names


def _only_active(layers: Iterable[nn.Module]) -> str:
    active: set[str] = {name for layer in layers for name in layer.active_adapters if name in adapters_of(layer)}  # type: ignore[union-attr]
    if len(active) != 1:
        raise AttachError(f"{len(active)} LoRA adapters are active ({sorted(active)}); name one with adapter_name=")
    return active.pop()


def _nothing_found(model: nn.Module) -> str:
    tuners = sorted({type(m).__name__ for m in model.modules() if type(m).__module__.startswith("peft.tuners.")})
    found = f"PEFT layers of type {tuners}" if tuners else f"a plain {type(model).__name__} without PEFT layers"
    return (
        f"no LoRA modules to attach to: found {found}; "
        "wrap the model first with peft.get_peft_model(model, LoraConfig(...))"
    )
