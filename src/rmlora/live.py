"""An adapter in training: its pairs, grouped; this step's masks on their gates; the method's state."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rmlora.combine import Chain
from rmlora.errors import AttachError
from rmlora.fast_layers import FastPath, can_be_fast, close_fast, open_fast
from rmlora.gates import Gate, can_gate, close_gates, open_gates
from rmlora.kept_rows import KeptRows
from rmlora.optimizers import refuse_foreign_parameters
from rmlora.pairs import Factors, Kept, Pair, Stack
from rmlora.sampled_layers import SampledPath
from rmlora.shards import any_gradient, at_rest, copy_each, is_sharded
from rmlora.siblings import Siblings
from rmlora.stacking import holding, stack_pairs
from rmlora.transform import FORWARD_HOOKS, Context, ForwardContext, Rows, State
from rmlora.triplet_gates import can_gate_triplets, close_triplet_gates, open_triplet_gates


class LiveAdapter:
    """The pairs a method acts on, and all that changes about them from step to step.

    Attributes:
        method: the chain.
        adapter: the adapter's name.
        seed: seed of every draw.
        step: optimizer steps completed.
        pairs: the pairs, in the model's order.
        gates: the gates (A, B) of every pair that calls modules.
        triplets: AdaLoRA's pairs whose layers have gates, because the method acts in the forward pass.
        stacks: the same pairs, grouped by shape.
        masks: this step's masks, per stack.
        fast: the pairs whose layers may take the fast path.
        sampled: the pairs whose layers have a faster way to draw in evaluation.
        siblings: which of them read the same input.
        state: the chain's state, per stack.
        forward_hooks: the hooks of the method that act in the forward pass.
        located: whether the first training forward has looked for the optimizer.
        microbatch: training forward passes since the last optimizer step.
        instance: number of the instance that a pass begins with; set by entry points that replicate the batch.
        instances: how many instances a pass stacks along the first dimension; set likewise.
        sampling: whether forward hooks draw although not training; set by entry points that average draws.
    """

    def __init__(
        self, method: Chain, adapter: str, seed: int, pairs: Iterable[Pair] = (), *, fast: bool = True
    ) -> None:
        self.method = method
        self.adapter = adapter
        self.seed = seed
        self.step = 0
        self.located = False
        self.microbatch = 0
        self.instance = 0
        self.instances = 1
        self.sampling = False
        self.forward_hooks = method.hooks() & FORWARD_HOOKS
        self.pairs: list[Pair] = []
        self.gates: dict[Pair, tuple[Gate, Gate]] = {}
        self.triplets: list[Pair] = []
        self.stacks: list[Stack] = []
        self.masks: list[KeptRows | None] = []
        self.fast: dict[Pair, FastPath] = {}
        self.sampled: list[Pair] = []
        self.siblings = Siblings()
        self._wants_fast = fast and not self.forward_hooks
        self._wants_sampled = fast and method.samples and method.multiplies_features
        self.state: State = ()
        self._places: dict[Pair, tuple[int, int]] = {}
        self._identity: tuple[int, ...] = ()
        self.add(list(pairs))
        self.prepare()

    def add(self, pairs: Sequence[Pair]) -> None:
        """Take more pairs; raises, with nothing changed, if the method does not suit them."""
        if not pairs:
            return
        self._refuse(pairs)
        for pair in pairs if self.forward_hooks else ():
            _refuse_other_forward(pair)
        stacks = stack_pairs(pairs, self._partition, self.seed)
        self.method.init(stacks)
        begun = self.method.begin(stacks, [s.factors for s in stacks]) if "begin" in self.method.hooks() else None
        for pair in pairs:
            if can_gate(pair):
                self.gates[pair] = open_gates(pair, self)
                if self._wants_fast and can_be_fast(pair):
                    self.fast[pair] = FastPath(pair, self.gates[pair])
                    open_fast(pair, self.fast[pair])
                elif self._wants_sampled and can_be_fast(pair):
                    open_fast(pair, SampledPath(pair, self.gates[pair]))
                    self.sampled.append(pair)
            elif self.forward_hooks:
                open_triplet_gates(pair, self)
                self.triplets.append(pair)
            self.pairs.append(pair)
        for stack, factors in zip(stacks, begun, strict=True) if begun is not None else ():
            _write_factors(stack, factors)

    def locate(self) -> None:
        """Look for what trains the pairs, at the first training forward; nothing here."""
        self.located = True

    def release(self) -> None:
        """Give every module its own class back."""
        for pair in self.gates:
            close_gates(pair)
        for pair in (*self.fast, *self.sampled):
            close_fast(pair)
        for pair in self.triplets:
            close_triplet_gates(pair)

    @property
    def kept(self) -> list[Kept | None]:
        """This step's masks, per stack; None where all directions learn."""
        return [None if mask is None else mask.kept for mask in self.masks]

    @property
    def rows(self) -> list[Rows | None]:
        """The positions this step's masks keep, per stack; None where all learn or their numbers differ."""
        return [None if mask is None else mask.rows for mask in self.masks]

    @torch.no_grad()
    def prepare(self) -> None:
        """Set the masks of the coming step, in place where they exist already."""
        self._regroup()
        drawn = self.method.keep(self.state, self.stacks, self.context())
        for i, (stack, mask, new) in enumerate(zip(self.stacks, self.masks, drawn, strict=True)):
            if new is None and mask is None:
                continue
            if new is None or mask is None or not mask.replace(new):
                asks = "adds" in self.method.hooks() or any(pair in self.fast for pair in stack.pairs)
                self.masks[i] = None if new is None else KeptRows(new, asks)
                self._show_mask(stack, self.masks[i])

    def path_of(self, pair: Pair) -> str:
        """How a pair's layer was last computed, or why it is never fast."""
        if pair in self.fast:
            return self.fast[pair].taken
        if not self._wants_fast:
            return "reference: the method acts in the forward pass" if self.forward_hooks else "reference: fast=False"
        return f"reference: {type(pair.layer).__name__} has no fast form"

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

    def fold(self, live: dict[Pair, Factors] | None = None) -> list[Factors]:
        """Return factors of plain LoRA with the same outputs, per stack; live tensors stay as they are.

        Args:
            live: what every pair holds, as matrices, where it was gathered already; None reads it.
        """
        self._regroup()
        stacks = [stack.renew() if live is None else _holding(stack, live) for stack in self.stacks]
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
            self.instances,
            self.sampling,
        )
        return state, ctx

    def count_forward(self, module: nn.Module, args: Any) -> None:
        """Count a training forward pass of the whole model, unless backward recomputes it; a hook of the root."""
        is_recomputed = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
        if module.training and torch.is_grad_enabled() and not is_recomputed:
            self.microbatch += 1
            self._drop_stale_gradients()

    def _drop_stale_gradients(self) -> None:
        """Clear what a discarded step left on the state's leaves: `zero_grad` clears parameters only."""
        leaves = [value for tensors in self.state for value in tensors.values() if value.grad is not None]
        if leaves and not any_gradient(parameter for pair in self.pairs for parameter in pair.parameters):
            for leaf in leaves:
                leaf.grad = None

    def _regroup(self) -> None:
        """Group pairs anew when parameters were replaced, cast, moved or sharded; state follows its pair."""
        if self._is_grouped():
            return
        with at_rest():
            if not self._is_grouped():
                self._group()

    def _is_grouped(self) -> bool:
        identity = tuple(id(p) for pair in self.pairs for p in pair.parameters)
        devices = {stack.keys.device for stack in self.stacks}
        return identity == self._identity and devices == {pair.parameters[0].device for pair in self.pairs}

    def _group(self) -> None:
        self._refuse(self.pairs)
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
        self.masks = [None] * len(self.stacks)
        for stack in self.stacks:
            self._show_mask(stack, None)
        self._identity = tuple(id(p) for pair in self.pairs for p in pair.parameters)
        self.prepare()

    def _refuse(self, pairs: Sequence[Pair]) -> None:
        """Raise where this method could not read or write the factors as they are kept."""
        refuse_foreign_parameters(pairs)
        reason = _unfit_for_shards(self.method)
        sharded = [pair for pair in pairs if any(map(is_sharded, pair.parameters))]
        if reason and sharded:
            raise AttachError(f"{sharded[0].name}: FSDP2 shards LoRA factors, and {reason}; use DDP instead")

    def _partition(self, pair: Pair) -> Hashable:
        return can_gate(pair), self.method.partition(pair.name)

    def _show_mask(self, stack: Stack, mask: KeptRows | None) -> None:
        rows = None if mask is None else mask.rows
        for row, pair in enumerate(stack.pairs):
            for i, gate in enumerate(self.gates.get(pair, ())):
                gate.kept = None if mask is None else (mask.kept.A, mask.kept.B)[i][row]
                gate.rows = None if rows is None else rows[i][row]


@torch.no_grad()
def _write_factors(stack: Stack, factors: Factors) -> None:
    for row, pair in enumerate(stack.pairs):
        for parameter, value in zip(pair.parameters, (factors.A, factors.B), strict=True):
            copy_each([parameter], [value[row].view(parameter.shape)])


def _holding(stack: Stack, live: dict[Pair, Factors]) -> Stack:
    own = [live[pair] for pair in stack.pairs]
    return holding(stack, Factors(torch.stack([one.A for one in own]), torch.stack([one.B for one in own])))


def _unfit_for_shards(method: Chain) -> str | None:
    """Say why a method cannot train factors that FSDP2 shards; None if it can."""
    if method.adapts != "LORA":
        return f"{method.adapts} is not sharded"
    if "blocks" in method.hooks():
        return "this method keeps whole blocks beside them"
    return None


def _refuse_other_forward(pair: Pair) -> None:
    """Raise where hooks in the forward pass could not act."""
    if not can_gate(pair) and not can_gate_triplets(pair):
        raise AttachError(
            f"{pair.name} ({type(pair.layer).__name__}) does not call modules for A and B, and this method acts in "
            "the forward pass; leave the module out of target_modules"
        )
    if pair.variant is not None:
        raise AttachError(
            f"{pair.name} uses {pair.variant}, whose forward pass is not B(A(x)), and this method acts in the "
            "forward pass; use plain LoRA"
        )
