"""An adapter in training: its pairs, grouped; this step's masks on their gates; the method's state."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rmlora.combine import Chain
from rmlora.errors import AttachError
from rmlora.gates import Gate, can_gate, close_gates, open_gates
from rmlora.optimizers import refuse_foreign_parameters
from rmlora.pairs import Factors, Kept, Pair, Stack, stack_pairs
from rmlora.transform import Context, ForwardContext, State

FORWARD_HOOKS = frozenset({"inputs", "ranks", "outputs"})


class LiveAdapter:
    """The pairs a method acts on, and all that changes about them from step to step.

    Attributes:
        method: the chain.
        adapter: the adapter's name.
        seed: seed of every draw.
        step: optimizer steps completed.
        pairs: the pairs, in the model's order.
        gates: the gates (A, B) of every pair that calls modules.
        stacks: the same pairs, grouped by shape.
        kept: this step's masks, per stack.
        state: the chain's state, per stack.
        forward_hooks: the hooks of the method that act in the forward pass.
        located: whether the first training forward has looked for the optimizer.
        microbatch: training forward passes since the last optimizer step.
        instance: which of several passes over a batch this is; set by entry points that replicate it.
    """

    def __init__(self, method: Chain, adapter: str, seed: int, pairs: Iterable[Pair] = ()) -> None:
        self.method = method
        self.adapter = adapter
        self.seed = seed
        self.step = 0
        self.located = False
        self.microbatch = 0
        self.instance = 0
        self.forward_hooks = method.hooks() & FORWARD_HOOKS
        self.pairs: list[Pair] = []
        self.gates: dict[Pair, tuple[Gate, Gate]] = {}
        self.stacks: list[Stack] = []
        self.kept: list[Kept | None] = []
        self.state: State = ()
        self._places: dict[Pair, tuple[int, int]] = {}
        self._identity: tuple[int, ...] = ()
        self.add(list(pairs))
        self.prepare()

    def add(self, pairs: Sequence[Pair]) -> None:
        """Take more pairs; raises, with nothing changed, if the method does not suit them."""
        if not pairs:
            return
        refuse_foreign_parameters(pairs)
        for pair in pairs if self.forward_hooks else ():
            _refuse_other_forward(pair)
        self.method.init(stack_pairs(pairs, self._partition, self.seed))
        for pair in pairs:
            if can_gate(pair):
                self.gates[pair] = open_gates(pair, self)
            self.pairs.append(pair)

    def locate(self) -> None:
        """Look for what trains the pairs, at the first training forward; nothing here."""
        self.located = True

    def release(self) -> None:
        """Give every module its own class back."""
        for pair in self.gates:
            close_gates(pair)

    @torch.no_grad()
    def prepare(self) -> None:
        """Set the masks of the coming step, in place where they exist already."""
        self._regroup()
        drawn = self.method.keep(self.state, self.stacks, self.context())
        for i, (stack, old, new) in enumerate(zip(self.stacks, self.kept, drawn, strict=True)):
            if old is not None and new is not None:
                old.A.copy_(new.A)
                old.B.copy_(new.B)
            elif old is not new:
                self.kept[i] = None if new is None else Kept(new.A.clone(), new.B.clone())
                self._show_mask(stack, self.kept[i])

    def learning(self) -> tuple[Kept | None, ...]:
        """Which directions the coming step will change, per stack; the masks themselves are rewritten after it."""
        self._regroup()
        if self.method.learns_what_is_kept:
            return tuple(self.kept)
        return self.method.learning(self.state, self.stacks, self.context())

    def context(self) -> Context:
        """What hooks may know now, without what only an optimizer step knows."""
        return Context(step=self.step, seed=self.seed, num_pairs=len(self.pairs))

    def report(self) -> list[dict[str, Tensor]]:
        """Return what the links report, per stack; each value `(n,)`."""
        self._regroup()
        return list(self.method.report(self.state, [stack.renew() for stack in self.stacks]))

    def fold(self) -> list[Factors]:
        """Return factors of plain LoRA with the same outputs, per stack; live tensors stay as they are."""
        self._regroup()
        stacks = [stack.renew() for stack in self.stacks]
        return list(self.method.fold(self.state, stacks, [stack.factors for stack in stacks]))

    def forward_state(self, pair: Pair, module: nn.Module) -> tuple[dict[str, Tensor], ForwardContext]:
        """This pair's slices of the state, and what its forward hooks may know."""
        i, row = self._places[pair]
        state = {key: value[row] for key, value in self.state[i].items()}
        key = self.stacks[i].keys[row : row + 1]
        ctx = ForwardContext(
            pair.name,
            self.step,
            self.seed,
            key,
            max(self.microbatch - 1, 0),
            self.instance,
            module.training,
            -1 - len(getattr(module, "kernel_size", ())),
        )
        return state, ctx

    def count_forward(self, module: nn.Module, args: Any) -> None:
        """Count a training forward pass of the whole model; a hook of the root."""
        if module.training and torch.is_grad_enabled():
            self.microbatch += 1
            self._drop_stale_gradients()

    def _drop_stale_gradients(self) -> None:
        """Clear what a discarded step left on the state's leaves: `zero_grad` clears parameters only."""
        leaves = [value for tensors in self.state for value in tensors.values() if value.grad is not None]
        if leaves and all(parameter.grad is None for pair in self.pairs for parameter in pair.parameters):
            for leaf in leaves:
                leaf.grad = None

    def _regroup(self) -> None:
        """Group pairs anew when parameters were replaced, cast or moved; state follows its pair."""
        identity = tuple(id(p) for pair in self.pairs for p in pair.parameters)
        devices = {stack.keys.device for stack in self.stacks}
        if identity == self._identity and devices == {pair.parameters[0].device for pair in self.pairs}:
            return
        refuse_foreign_parameters(self.pairs)
        carried = {
            pair: {key: value.detach()[row] for key, value in self.state[i].items()}
            for pair, (i, row) in self._places.items()
        }
        self.stacks = stack_pairs(self.pairs, self._partition, self.seed)
        self.state = self.method.init(self.stacks)
        for stack, tensors in zip(self.stacks, self.state, strict=True):
            for key, value in tensors.items():
                for row, pair in enumerate(stack.pairs):
                    if key in carried.get(pair, {}):
                        value.detach()[row] = carried[pair][key]
        self._places = {pair: (i, row) for i, stack in enumerate(self.stacks) for row, pair in enumerate(stack.pairs)}
        self.kept = [None] * len(self.stacks)
        for stack in self.stacks:
            self._show_mask(stack, None)
        self._identity = identity
        self.prepare()

    def _partition(self, pair: Pair) -> Hashable:
        return can_gate(pair), self.method.partition(pair.name)

    def _show_mask(self, stack: Stack, kept: Kept | None) -> None:
        for row, pair in enumerate(stack.pairs):
            if pair in self.gates:
                for gate, side in zip(self.gates[pair], ("A", "B"), strict=True):
                    gate.kept = None if kept is None else getattr(kept, side)[row]


def _refuse_other_forward(pair: Pair) -> None:
    """Raise where hooks in the forward pass could not act."""
    if not can_gate(pair):
        raise AttachError(
            f"{pair.name} ({type(pair.layer).__name__}) does not call modules for A and B, and this method acts in "
            "the forward pass; leave the module out of target_modules"
        )
    if pair.variant is not None:
        raise AttachError(
            f"{pair.name} uses {pair.variant}, whose forward pass is not B(A(x)), and this method acts in the "
            "forward pass; use plain LoRA"
        )
