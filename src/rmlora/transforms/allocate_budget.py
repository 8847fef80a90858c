"""AdaLoRA's budget: which triplets of which modules are worth keeping, decided by PEFT's own allocator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from peft.tuners.adalora import AdaLoraModel
from peft.tuners.adalora.layer import RankAllocator
from torch import Tensor

from rmlora.errors import MethodError
from rmlora.pairs import Factors, Stack
from rmlora.transform import Context, Moments, State, Transform
from rmlora.transforms.add_orthogonality import add_orthogonality

_PARTS = ("A", "B", "E")
# What the link calls its settings, and what PEFT's AdaLoraConfig does.
_SETTINGS = {
    "total_steps": "total_step",
    "target_r": "target_r",
    "initial_steps": "tinit",
    "final_steps": "tfinal",
    "interval": "deltaT",
    "beta1": "beta1",
    "beta2": "beta2",
    "weight": "orth_reg_weight",
}


def budget_at(step: int, start: int, target: int, total_steps: int, initial_steps: int, final_steps: int) -> int:
    """Return how many triplets the published cubic keeps over all modules after `step` optimizer steps.

    Args:
        step: optimizer steps completed, >= 0.
        start: triplets before training.
        target: triplets to end with.
        total_steps: length of training.
        initial_steps: steps before pruning begins.
        final_steps: steps at the end without further pruning.

    Example:
        >>> [budget_at(step, 12, 4, total_steps=10, initial_steps=2, final_steps=4) for step in (2, 4, 6, 10)]
        [12, 5, 4, 4]

    Source:
        AdaLoRA, arXiv:2303.10512, Eq. 12.
    """
    if step <= initial_steps:
        return start
    if step > total_steps - final_steps:
        return target
    left = 1.0 - (step - initial_steps) / (total_steps - final_steps - initial_steps)
    return int(target + (start - target) * left**3)


@dataclass(frozen=True)
class AllocateBudget(Transform):
    """Link: prune the triplets of an AdaLoRA adapter to a falling budget, and penalise their overlap.

    PEFT's AdaLoRA needs a call after every optimizer step that trainers do not make, and adds its penalty to the loss
    of evaluation too. Attached, the call is made at every step that counts, in any trainer, and the penalty is added
    to the gradient instead: `weight * mean(||A A^T - I||_F, ||B^T B - I||_F)` over all modules, not squared.

    A field left None is taken from the adapter's `AdaLoraConfig` when the method is attached.

    Attributes:
        total_steps: optimizer steps of the whole training, >= 1 (`total_step`).
        target_r: mean rank per module to end with, 1 to init_r; equal to init_r nothing is pruned.
        initial_steps: steps before pruning begins, >= 0 (`tinit`).
        final_steps: steps at the end in which what is kept stays the same, >= 0 (`tfinal`).
        interval: optimizer steps between prunings, >= 1 (`deltaT`).
        weight: strength of the penalty, >= 0; 0 adds none (`orth_reg_weight`).
        beta1: smoothing of the importance of an entry, in (0, 1).
        beta2: smoothing of its uncertainty, in (0, 1).

    Raises:
        MethodError: a value is out of range, or the three phases do not fit into `total_steps`.

    Example:
        >>> AllocateBudget(total_steps=1000, target_r=4).weight is None
        True

    Source:
        AdaLoRA, arXiv:2303.10512, Algorithm 1, as PEFT implements it. Deviations: steps are counted from 1, so that
        the last pruning happens even with final_steps=0; equal target and initial rank prune nothing instead of
        failing; the penalty comes once per optimizer step and after a trainer's clipping.
    """

    adapts: ClassVar[str] = "ADALORA"

    total_steps: int | None = None
    target_r: int | None = None
    initial_steps: int | None = None
    final_steps: int | None = None
    interval: int | None = None
    weight: float | None = None
    beta1: float | None = None
    beta2: float | None = None

    def __post_init__(self) -> None:
        least = {"total_steps": 1, "target_r": 1, "initial_steps": 0, "final_steps": 0, "interval": 1, "weight": 0.0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise MethodError(f"{name}={value}; it must be >= {low}")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < 1.0:
                raise MethodError(f"{name}={value}; it must lie between 0 and 1")
        if None in (self.total_steps, self.initial_steps, self.final_steps):
            return
        room = self.total_steps - self.final_steps - self.initial_steps  # type: ignore[operator]
        if room < 1 or self.total_steps - self.final_steps < 2:  # type: ignore[operator]
            raise MethodError(
                f"total_steps={self.total_steps} leaves no step to prune in after initial_steps={self.initial_steps} "
                f"and before final_steps={self.final_steps}; lower one of these"
            )

    def suited_to(self, config: Any) -> AllocateBudget:
        """Return the link with what is left open taken from the adapter's `AdaLoraConfig`."""
        chosen = {name: getattr(self, name) for name in _SETTINGS}
        return replace(
            self, **{name: getattr(config, _SETTINGS[name]) for name, value in chosen.items() if value is None}
        )

    def init(self, pairs: Sequence[Stack]) -> State:
        """Begin with importance zero and everything kept."""
        for stack in pairs:
            if self.target_r is not None and self.target_r > stack.r:
                raise MethodError(
                    f"target_r={self.target_r} exceeds init_r={stack.r} of {stack.names[0]}; raise init_r"
                )
        return tuple(_no_importance(stack) for stack in pairs)

    def grads(
        self, state: State, pairs: Sequence[Stack], grads: Sequence[Factors], ctx: Context
    ) -> tuple[Sequence[Factors], State]:
        """Add the penalty, and remember the gradients: importance is taken after the optimizer's step."""
        if sum(map(len, pairs)) != ctx.num_pairs:
            idle = ctx.num_pairs - sum(map(len, pairs))
            raise MethodError(
                f"{idle} of {ctx.num_pairs} modules have no gradient at this step, and AdaLoRA ranks the triplets of "
                "all of them against each other; leave such modules out of target_modules"
            )
        _hold_scale(pairs)
        weight = (self.weight or 0.0) / (2 * ctx.num_pairs) * ctx.loss_scale
        if self.weight:
            grads = [
                add_orthogonality(g, p.factors, weight, norm="frobenius") for g, p in zip(grads, pairs, strict=True)
            ]
        remembered = tuple(
            tensors
            | {
                "grad_A": g.A / ctx.loss_scale,
                "grad_B": g.B / ctx.loss_scale,
                "grad_E": _grad_of_values(p) / ctx.loss_scale,
            }
            for tensors, g, p in zip(state, grads, pairs, strict=True)
        )
        return grads, remembered

    def project(
        self,
        state: State,
        pairs: Sequence[Stack],
        before: Sequence[Factors],
        after: Sequence[Factors],
        moments: tuple[Moments, Moments],
        ctx: Context,
    ) -> tuple[Sequence[Factors], Moments, State]:
        """Let PEFT's allocator see the step that was made; it zeroes the values of triplets it prunes."""
        allocation = _Allocation(self, pairs, after, state)
        AdaLoraModel.update_and_allocate(allocation, ctx.step + 1)
        return after, moments[1], allocation.state()

    def fold(self, state: State, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Multiply the values into the rows of A."""
        return [Factors((f.A * _values(p)).to(f.A.dtype), f.B) for f, p in zip(factors, pairs, strict=True)]

    def report(self, state: State, pairs: Sequence[Stack]) -> Sequence[dict[str, Tensor]]:
        """Tell `open`, the triplets whose value is not zero, and `silent`, 1 for a module that has none."""
        opened = [(_values(stack).flatten(1) != 0).sum(dim=1) for stack in pairs]
        return tuple({"open": count, "silent": (count == 0).long()} for count in opened)


class _Allocator(RankAllocator):  # type: ignore[misc]
    """PEFT's allocator, which fails where there is nothing to prune."""

    def mask_to_budget(self, model: Any, budget: int) -> dict[str, list[bool]]:
        """Keep the `budget` most important triplets and zero the values of the others."""
        if budget < self.init_bgt:
            return super().mask_to_budget(model, budget)  # type: ignore[no-any-return]
        return {name: [True] * len(p) for name, p in model.named_parameters() if f"lora_E.{self.adapter_name}" in name}


class _Allocation:
    """What `AdaLoraModel.update_and_allocate` asks of a model, for the pairs of one step."""

    def __init__(self, link: AllocateBudget, pairs: Sequence[Stack], factors: Sequence[Factors], state: State) -> None:
        self.stacks = pairs
        self.trainable_adapter_name = adapter = pairs[0].pairs[0].adapter
        self.model = self
        self._tensors: dict[str, Tensor] = {}
        importance, uncertainty, kept = {}, {}, {}
        for i, row, part, name in self._places():
            E = pairs[i].pairs[row].E
            assert E is not None
            # Detached, the values share their memory with the live ones: what PEFT zeroes is zero.
            value = E.detach() if part == "E" else getattr(factors[i], part)[row]
            value.grad = state[i][f"grad_{part}"][row].to(value.dtype)
            self._tensors[name] = value
            importance[name] = state[i][f"importance_{part}"][row]
            uncertainty[name] = state[i][f"uncertainty_{part}"][row]
            if part == "E":
                kept[name] = state[i]["kept"][row].tolist()
        self.config = SimpleNamespace(**{theirs: getattr(link, ours) for ours, theirs in _SETTINGS.items()})
        self.config.rank_pattern = kept
        self.peft_config = {adapter: self.config}
        self.rankallocator = _Allocator(self, self.config, adapter)
        self.rankallocator.exp_avg_ipt, self.rankallocator.exp_avg_unc = importance, uncertainty
        self.rankallocator.ipt = dict(importance)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The triplets, by names of the form PEFT's allocator looks for."""
        return iter(self._tensors.items())

    def state(self) -> State:
        """Collect what the allocator remembers, per stack; after the last pruning it remembers nothing."""
        collected = tuple(_no_importance(stack) for stack in self.stacks)
        for i, row, part, name in self._places():
            if name in self.rankallocator.exp_avg_ipt:
                collected[i][f"importance_{part}"][row] = self.rankallocator.exp_avg_ipt[name]
                collected[i][f"uncertainty_{part}"][row] = self.rankallocator.exp_avg_unc[name]
            if part == "E":
                kept = torch.tensor(self.config.rank_pattern[name])
                collected[i]["kept"][row] = kept.to(collected[i]["kept"].device)
        return collected

    def _places(self) -> Iterator[tuple[int, int, str, str]]:
        """Stack, row, part and name of every tensor."""
        for i, stack in enumerate(self.stacks):
            for row, pair in enumerate(stack.pairs):
                for part in _PARTS:
                    yield i, row, part, f"{pair.name}.lora_{part}.{self.trainable_adapter_name}"


def _no_importance(stack: Stack) -> dict[str, Tensor]:
    A, B = stack.pairs[0].parameters
    shapes = {"A": A.shape, "B": B.shape, "E": (stack.r, 1)}
    zeros = {
        f"{kind}_{part}": torch.zeros(len(stack), *shape, dtype=A.dtype, device=A.device)
        for kind in ("importance", "uncertainty")
        for part, shape in shapes.items()
    }
    return zeros | {"kept": torch.ones(len(stack), stack.r, dtype=torch.bool, device=A.device)}


def _hold_scale(pairs: Sequence[Stack]) -> None:
    """Take the gradient off the ranks that PEFT divides the scale by.

    PEFT marks them as trainable where the adapter has `modules_to_save`, and does not save them: trained, they change
    the scale, and the adapter that is loaded is another. Without a gradient, optimizers leave them alone.
    """
    for stack in pairs:
        for pair in stack.pairs:
            pair.layer.ranknum[pair.adapter].grad = None  # type: ignore[index]


def _values(stack: Stack) -> Tensor:
    """All E of a stack, `(n, r, 1)`."""
    return torch.stack([pair.E.detach() for pair in stack.pairs if pair.E is not None])


def _grad_of_values(stack: Stack) -> Tensor:
    values = [pair.E for pair in stack.pairs if pair.E is not None]
    return torch.stack([torch.zeros_like(E) if E.grad is None else E.grad for E in values])
