"""Links made up for the tests: each uses a part of the contract that RM-LoRA itself does not."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from rmlora.draws import hash_scores
from rmlora.leaves import gradient_of
from rmlora.pairs import Factors
from rmlora.transform import Transform


@dataclass(frozen=True)
class GateDirections(Transform):
    """Multiply direction i by a gate that decays at each step and is cut to zero below a floor (SoRA's shape)."""

    decay: float = 0.9
    floor: float = 0.0

    def init(self, pairs):
        return tuple(
            {
                "gate": torch.linspace(0.5, 1.5, stack.r, dtype=stack.pairs[0].A.dtype).repeat(len(stack), 1),
                "age": torch.zeros(len(stack), stack.r, dtype=torch.int64),
            }
            for stack in pairs
        )

    def ranks(self, state, x, ctx):
        return x * state["gate"].to(x.dtype)

    def project(self, state, pairs, before, after, moments, ctx):
        decayed = []
        for tensors in state:
            gate = tensors["gate"] * self.decay
            gate = torch.where(gate > self.floor, gate, torch.zeros_like(gate))
            decayed.append({"gate": gate, "age": tensors["age"] + 257})
        return after, moments[1], tuple(decayed)

    def fold(self, state, pairs, factors):
        return [
            Factors(f.A * tensors["gate"].unsqueeze(2).to(f.A.dtype), f.B)
            for f, tensors in zip(factors, state, strict=True)
        ]


@dataclass(frozen=True)
class DescendBySign(Transform):
    """Compute the step itself: minus lr times the sign of the gradient; the optimizer's own update is discarded."""

    owns_update: ClassVar[bool] = True

    def grads(self, state, pairs, grads, ctx):
        remembered = tuple({"A": g.A.sign(), "B": g.B.sign()} for g in grads)
        return grads, remembered

    def project(self, state, pairs, before, after, moments, ctx):
        moved = [
            Factors(start.A - lr_A * tensors["A"], start.B - lr_B * tensors["B"])
            for start, tensors, (lr_A, lr_B) in zip(after, state, ctx.lr, strict=True)
        ]
        return moved, moments[1], tuple({} for _ in state)


@dataclass(frozen=True)
class DropInputs(Transform):
    """Drop input features by a draw that names step, micro-batch and instance; remembers what it drew."""

    drawn: ClassVar[list] = []

    def inputs(self, state, x, ctx):
        if not ctx.training:
            return x
        scores = hash_scores(ctx.key, x.shape[-1], ctx.seed, ctx.step, ctx.microbatch, ctx.instance)[0]
        keep = scores < 2**31
        self.drawn.append((ctx.name, ctx.step, ctx.microbatch, tuple(keep.tolist())))
        return x * keep.to(x.dtype)

    def outputs(self, state, x, ctx):
        return x * 0.5

    def fold(self, state, pairs, factors):
        return [Factors(f.A, f.B * 0.5) for f in factors]


@dataclass(frozen=True)
class NeedsReplicas(Transform):
    """Something that attaching alone cannot give."""

    needs: ClassVar[frozenset] = frozenset({"a replicated batch"})


@dataclass(frozen=True)
class AddBlock(Transform):
    """A frozen block of `width` directions of one value, times a number that learns (SD-LoRA's shape)."""

    width: int = 2
    value: float = 0.1

    def init(self, pairs):
        return tuple(
            {
                "A": stack.A.new_full((len(stack), self.width, stack.A.shape[2]), self.value),
                "B": stack.B.new_full((len(stack), stack.B.shape[1], self.width), self.value),
                "size": stack.B.new_ones(len(stack), 1, 1).requires_grad_(),
            }
            for stack in pairs
        )

    def blocks(self, state, factors, ctx):
        return Factors(state["A"], state["B"] * state["size"])

    def fold(self, state, pairs, factors):
        return [f.joined(Factors(t["A"], t["B"] * t["size"].detach())) for f, t in zip(factors, state, strict=True)]

    def project(self, state, pairs, before, after, moments, ctx):
        moved = [
            t | {"size": (t["size"].detach() - 0.1 * gradient_of(t["size"], ctx.leaf_scale)).requires_grad_()}
            for t in state
        ]
        return after, moments[1], tuple(moved)


@dataclass(frozen=True)
class BeginAt(Transform):
    """Begin with factors of one value, whatever PEFT drew."""

    value: float = 0.5

    def begin(self, pairs, factors):
        return [Factors(torch.full_like(f.A, self.value), torch.full_like(f.B, self.value)) for f in factors]
