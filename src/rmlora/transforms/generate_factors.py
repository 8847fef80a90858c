"""RepLoRA's generator: A and B as outputs of a small network that modules share, and the network trained instead."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from rmlora.draws import draw_normals, words_of
from rmlora.errors import MethodError, StateError
from rmlora.pairs import Factors, Stack
from rmlora.stacking import refuse_used
from rmlora.transform import Context, Moments, State, Transform

_PATTERNS = {"block": r"^(?:(.*)\.)?[^.]*$", "module": r"^(.*)$", "all": r"^()"}
_BETA_1, _BETA_2 = 0.9, 0.999


@dataclass(frozen=True)
class Trunk:
    """The shared part of the network, of n groups.

    Attributes:
        code: `(n, r)`, one number for each direction.
        first: `(n, r, h)`; row i is the first layer's weight for direction i, as its input is code_i times unit i.
        second: `(n, h, h)`, inputs by outputs.
        first_shift, second_shift: `(n, 1, h)`.
    """

    code: Tensor
    first: Tensor
    first_shift: Tensor
    second: Tensor
    second_shift: Tensor

    @property
    def hidden(self) -> tuple[Tensor, Tensor]:
        """What both layers give for each direction, `(n, r, h)`."""
        inner = (self.code.unsqueeze(2) * self.first + self.first_shift).relu()
        return inner, (inner @ self.second + self.second_shift).relu()


def unpack_trunk(packed: Tensor, r: int) -> Trunk:
    """Read the shared part of the network from one row of numbers per group.

    Args:
        packed: `(n, r + r h + h + h h + h)`.
        r: number of directions.

    Returns:
        Views of `packed`.

    Example:
        >>> unpack_trunk(torch.zeros(1, 2 + 2 * 4 + 4 + 16 + 4), r=2).second.shape
        torch.Size([1, 4, 4])
    """
    h = round((-(r + 2) + ((r + 2) ** 2 + 4 * (packed.shape[1] - r)) ** 0.5) / 2)
    code, first, first_shift, second, second_shift = torch.split(packed, [r, r * h, h, h * h, h], dim=1)
    shape = (len(packed), -1, h)
    return Trunk(code, first.view(shape), first_shift.view(shape), second.view(shape), second_shift.view(shape))


def generate_factors(features: Tensor, head: Tensor) -> Tensor:
    """Return A, or B transposed, of every pair: a linear image of each direction's features.

    Args:
        features: `(n, r, h)`, what the trunk gives.
        head: `(n, h, d)`, each module's own.

    Returns:
        `(n, r, d)`.

    Example:
        >>> generate_factors(torch.ones(1, 2, 4), torch.zeros(1, 4, 3)).shape
        torch.Size([1, 2, 3])

    Source:
        RepLoRA, arXiv:2502.03044.
    """
    return features @ head


def pull_back(trunk: Trunk, grad: Tensor) -> Tensor:
    """Return the gradient of the packed trunk, given that of its features.

    Args:
        trunk: of n groups.
        grad: `(n, r, h)`.

    Returns:
        `(n, r + r h + h + h h + h)`, in the order of `unpack_trunk`.

    Example:
        >>> trunk = unpack_trunk(torch.ones(1, 1 + 1 + 1 + 1 + 1), r=1)  # features: 2 * 1 + 1
        >>> pull_back(trunk, torch.ones(1, 1, 1))
        tensor([[1., 1., 1., 2., 1.]])
    """
    inner, features = trunk.hidden
    at_second = torch.where(features > 0, grad, 0.0)
    at_first = torch.where(inner > 0, at_second @ trunk.second.mT, 0.0)
    parts = (
        (at_first * trunk.first).sum(dim=2),
        trunk.code.unsqueeze(2) * at_first,
        at_first.sum(dim=1),
        inner.mT @ at_second,
        at_second.sum(dim=1),
    )
    return torch.cat([part.flatten(1) for part in parts], dim=1)


@dataclass(frozen=True)
class GenerateFactors(Transform):
    """Link: let A and B be outputs of a small network, and train the network instead of them.

    For each of A and B a group of modules shares a code, one trainable number per direction, and two layers with ReLU;
    each module has a linear head of its own. Modules of one shape whose names agree as `sharing` says form a group.
    At each optimizer step the gradient of A and B is pulled back to the network, which takes a step of AdamW, and the
    new factors are written. The optimizer's own update is discarded, and there is nothing in the forward pass.

    The network is state; members of a group hold equal copies of what they share. B's head begins at zero, and so dW.

    Attributes:
        hidden: width h of both layers, >= 1; None is max(4 r, 64).
        sharing: "block" (modules with the same parent, such as query and value), "module" (none), "all" (all of one
            shape), or a regular expression with one group: modules for which it finds the same text there.
        rate: learning rate of the network as a multiple of that of A's or B's parameter group, > 0; None is 2 / h: as
            all weights move at once, the first step then moves B about as far as AdamW's would.
        epsilon: AdamW's, > 0.
        weight_decay: decoupled decay of the whole network, >= 0; 0 is none.

    Raises:
        MethodError: a value is out of range; in `chain`, when another link masks directions.
        StateError: at the first step, the factors are not those the network gave, as after loading an adapter.

    Example:
        >>> GenerateFactors().sharing
        'block'

    Source:
        RepLoRA, arXiv:2502.03044. Widths, and which parts are shared, follow a third party's implementation, as the
        authors' was not found. Deviations: all modules of a block and shape share, not query and value alone; codes
        begin at 1, weights are hashes of (seed, group or module), scaled so that A's variance is PEFT's; `rate` (1 is
        plain AdamW on the network).
    """

    owns_update: ClassVar[bool] = True
    mixes_directions: ClassVar[str] = "they come out of one network"

    hidden: int | None = None
    sharing: str = "block"
    rate: float | None = None
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.hidden is not None and not self.hidden >= 1:
            raise MethodError(f"hidden={self.hidden}; a layer has a width >= 1 (None: max(4 r, 64))")
        if self.rate is not None and not self.rate > 0.0:
            raise MethodError(f"rate={self.rate}; it must be > 0 (None: 2 / hidden)")
        if not self.epsilon > 0.0:
            raise MethodError(f"epsilon={self.epsilon}; it must be > 0")
        if not self.weight_decay >= 0.0:
            raise MethodError(f"weight_decay={self.weight_decay}; it must be >= 0 (0 is none)")
        try:
            is_pattern = re.compile(_PATTERNS.get(self.sharing, self.sharing)).groups == 1
        except re.error:
            is_pattern = False
        if not is_pattern:
            raise MethodError(
                f'sharing="{self.sharing}" is not one of {list(_PATTERNS)}, nor a regular expression with one group'
            )

    def init(self, pairs: Sequence[Stack]) -> State:
        """Draw the network, in float32 at least."""
        return tuple(self._fresh(stack) for stack in pairs)

    def begin(self, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Return what the new network gives, unless there is an adapter to lose."""
        refuse_used(pairs, factors, "RepLoRA begins with its network's outputs")
        return [
            _generated(tensors, stack.r, f) for tensors, stack, f in zip(self.init(pairs), pairs, factors, strict=True)
        ]

    def grads(
        self, state: State, pairs: Sequence[Stack], grads: Sequence[Factors], ctx: Context
    ) -> tuple[Sequence[Factors], State]:
        """Remember the gradients, free of the loss scale, until the optimizer has stepped."""
        if ctx.step == 0:
            _check_begun(state, pairs)
        remembered = []
        for tensors, g in zip(state, grads, strict=True):
            A, B = (side.to(tensors["trunk_A"].dtype) / ctx.loss_scale for side in (g.A, g.B.mT))
            remembered.append({**tensors, "gradient_A": A, "gradient_B": B})
        return grads, tuple(remembered)

    def project(
        self,
        state: State,
        pairs: Sequence[Stack],
        before: Sequence[Factors],
        after: Sequence[Factors],
        moments: tuple[Moments, Moments],
        ctx: Context,
    ) -> tuple[Sequence[Factors], Moments, State]:
        """Train the network by a step, and return the factors it gives now."""
        latest = tuple(
            self._learn(tensors, stack, rates) for tensors, stack, rates in zip(state, pairs, ctx.lr, strict=True)
        )
        moved = [_generated(t, stack.r, f) for t, stack, f in zip(latest, pairs, after, strict=True)]
        return moved, moments[1], latest

    def _learn(
        self, tensors: dict[str, Tensor], stack: Stack, rates: tuple[float | Tensor, float | Tensor]
    ) -> dict[str, Tensor]:
        """One step of AdamW: heads by module, trunks by group, whose members get equal copies."""
        names = _groups(stack.names, self.sharing)
        order = {name: i for i, name in enumerate(dict.fromkeys(names))}
        index = torch.tensor([order[name] for name in names], device=stack.keys.device)
        # Whoever sat out a step has an old copy: the one that took part most often is the group's.
        inside = torch.arange(len(order), device=index.device).unsqueeze(1) == index
        chosen = torch.where(inside, tensors["trunk_steps"], -1).argmax(dim=1)
        latest = {"steps": tensors["steps"] + 1, "trunk_steps": (tensors["trunk_steps"][chosen] + 1)[index]}
        multiple = 2.0 / tensors["head_A"].shape[1] if self.rate is None else self.rate
        for side, rate in zip("AB", (given * multiple for given in rates), strict=True):
            trunk = unpack_trunk(tensors[f"trunk_{side}"][chosen], stack.r)
            head, grad = tensors[f"head_{side}"], tensors[f"gradient_{side}"]
            features = trunk.hidden[1]
            by_member = (grad @ head.mT).flatten(1)
            by_group = (inside.to(by_member) @ by_member).view_as(features)
            carried = {key: tensors[f"trunk_{side}{key}"][chosen] for key in ("", "_mean", "_variance")}
            at = rate.view(-1)[chosen].unsqueeze(1) if isinstance(rate, Tensor) and rate.dim() > 0 else rate
            stepped = self._adam(carried, pull_back(trunk, by_group), latest["trunk_steps"][chosen], at)
            latest |= {f"trunk_{side}{key}": value[index] for key, value in stepped.items()}
            carried = {key: tensors[f"head_{side}{key}"] for key in ("", "_mean", "_variance")}
            stepped = self._adam(carried, features[index].mT @ grad, latest["steps"], rate)
            latest |= {f"head_{side}{key}": value.contiguous() for key, value in stepped.items()}
        return latest

    def _adam(self, carried: dict[str, Tensor], grad: Tensor, steps: Tensor, rate: float | Tensor) -> dict[str, Tensor]:
        """One step of AdamW on tensors with a leading dimension, each row with its own count."""
        value = carried[""]
        counted = steps.to(value.dtype).view(-1, *[1] * (value.dim() - 1))
        mean = carried["_mean"].lerp(grad, 1.0 - _BETA_1)
        variance = carried["_variance"] * _BETA_2 + (1.0 - _BETA_2) * grad.square()
        length = (variance / (1.0 - _BETA_2**counted)).sqrt() + self.epsilon
        step = mean / (1.0 - _BETA_1**counted) / length + self.weight_decay * value
        size = rate.to(value) if isinstance(rate, Tensor) else rate
        return {"": value - size * step, "_mean": mean, "_variance": variance}

    def _fresh(self, stack: Stack) -> dict[str, Tensor]:
        A, B, r = stack.pairs[0].A, stack.pairs[0].B, stack.r
        h = max(4 * r, 64) if self.hidden is None else self.hidden
        like = torch.zeros((), dtype=torch.promote_types(A.dtype, torch.float32), device=A.device)
        groups = torch.tensor([words_of(name) for name in _groups(stack.names, self.sharing)], device=A.device)
        zeros, ones = like.new_zeros(len(stack), h), like.new_ones(len(stack), r)
        steps = torch.zeros(len(stack), dtype=torch.int64, device=A.device)
        fresh = {"steps": steps, "trunk_steps": steps.clone()}
        for stream, side in enumerate("AB"):
            first = draw_normals(groups, r * h, stack.seed, stream, 0).to(like) * 2.0**0.5
            second = draw_normals(groups, h * h, stack.seed, stream, 1).to(like) * (2.0 / h) ** 0.5
            fresh[f"trunk_{side}"] = torch.cat([ones, first, zeros, second, zeros], dim=1)
        head = draw_normals(stack.keys, h * A.shape[1], stack.seed, 2).to(like) / (3.0 * A.shape[1] * h) ** 0.5
        fresh |= {"head_A": head.view(len(stack), h, -1), "head_B": like.new_zeros(len(stack), h, len(B))}
        learning = [f"{part}_{side}" for part in ("trunk", "head") for side in "AB"]
        moments = {f"{key}_{name}": torch.zeros_like(fresh[key]) for key in learning for name in ("mean", "variance")}
        return fresh | moments


def _generated(tensors: dict[str, Tensor], r: int, like: Factors) -> Factors:
    A, B = (
        generate_factors(unpack_trunk(tensors[f"trunk_{side}"], r).hidden[1], tensors[f"head_{side}"]) for side in "AB"
    )
    return Factors(A.to(like.A.dtype), B.mT.to(like.B.dtype))


def _check_begun(state: State, pairs: Sequence[Stack]) -> None:
    for tensors, stack in zip(state, pairs, strict=True):
        expected = _generated(tensors, stack.r, stack.factors)
        apart = (expected.A - stack.A).norm() + (expected.B - stack.B).norm()
        if not apart <= 1e-2 * expected.A.norm():
            raise StateError(
                f"the factors of {stack.names[0]} are not what RepLoRA's network gave, which the first step would "
                "bring back; start from a new adapter, or load the optimizer's state together with the model's"
            )


@lru_cache(maxsize=256)
def _groups(names: tuple[str, ...], sharing: str) -> tuple[str, ...]:
    """The name of each module's group; a module in which the pattern is not found is its own."""
    found = [re.search(_PATTERNS.get(sharing, sharing), name) for name in names]
    return tuple(name if match is None else f"shared {match[1]}" for name, match in zip(names, found, strict=True))
