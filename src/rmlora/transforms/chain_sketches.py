"""RAC-LoRA's chain: one factor is a random sketch that stays, the other learns from zero; then both freeze."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from rmlora.draws import draw_normals
from rmlora.errors import MethodError
from rmlora.pairs import Factors, Kept, Stack
from rmlora.transform import Context, ForwardContext, Moments, State, Transform

Side = Literal["left", "right"]

_STREAM = 0x52AC


def draw_sketch(keys: Tensor, rows: int, columns: int, seed: int, block: int) -> Tensor:
    """Draw a Gaussian matrix for each pair, of variance 1 over the longer side: the directions have about length 1.

    Args:
        keys: int64 `(n, 2)`, the pairs' words.
        rows: of each matrix.
        columns: of each matrix.
        seed: of the run.
        block: number of the block, from 0.

    Returns:
        float64 `(n, rows, columns)`; the same on every device.

    Example:
        >>> draw_sketch(torch.tensor([[1, 2]]), 400, 3, seed=0, block=0).norm(dim=1).round()
        tensor([[1., 1., 1.]], dtype=torch.float64)

    Source:
        RAC-LoRA, arXiv:2410.08305, which leaves the distribution open; the variance is ours.
    """
    normals = draw_normals(keys, rows * columns, seed, block, _STREAM)
    return normals.view(-1, rows, columns) / math.sqrt(max(rows, columns))


@dataclass(frozen=True)
class ChainSketches(Transform):
    """Link: train a chain of blocks, each a random frozen sketch times a factor that starts from zero.

    With `side="left"` B is the sketch and A learns; with "right" A is the sketch and B learns. Every `block_steps`
    optimizer steps the pair as it is becomes a frozen block beside the new one: a new sketch, the other factor zero,
    the optimizer's state of the pair zero. The forward pass is `y = W0 x + s (B A x + sum of B_t A_t x)` over frozen
    blocks t, so outputs do not jump. After `num_blocks - 1` such changes the last block trains on. Exported rank:
    `num_blocks * r`.

    Neither momentum nor weight decay moves the sketch: it is put back after every step. Sketches are hashes of (seed,
    module, block); the state keeps those of frozen blocks as matrices, because every forward pass multiplies by them.

    An adapter that has learnt something already goes on with its factors: only where B is still zero, as PEFT leaves
    it, is the first sketch drawn. A pair without gradient in the last step of a block keeps it for another
    `block_steps`.

    Attributes:
        side: which factor is the sketch: "left" (B) or "right" (A).
        num_blocks: length of the chain, >= 1.
        block_steps: optimizer steps of each block, >= 1.

    Raises:
        MethodError: a value is out of range or a name unknown.

    Example:
        >>> ChainSketches(num_blocks=3, block_steps=100).side
        'left'

    Source:
        RAC-LoRA, arXiv:2410.08305. Deviations: a finished block is kept as factors instead of being added to W0; the
        last block trains on; where `lora_dropout` is on, frozen blocks see the dropped input, as merged ones would not.
    """

    side: Side = "left"
    num_blocks: int = 4
    block_steps: int = 1000

    def __post_init__(self) -> None:
        if self.side not in get_args(Side):
            raise MethodError(f'side="{self.side}" is not one of {list(get_args(Side))}')
        if self.num_blocks < 1:
            raise MethodError(f"{self.num_blocks} blocks make no chain; give 1 or more")
        if self.block_steps < 1:
            raise MethodError(f"block_steps={self.block_steps}; it counts optimizer steps of a block, >= 1")

    def hooks(self) -> frozenset[str]:
        """No block and nothing to fold in a chain of one."""
        return super().hooks() - ({"blocks", "fold"} if self.num_blocks == 1 else set())

    def init(self, pairs: Sequence[Stack]) -> State:
        """Make room for the blocks to come, zeros that add nothing; `block` `(n,)` is the number of the live one."""
        return tuple(
            {
                "A": torch.zeros_like(stack.A).repeat(1, self.num_blocks - 1, 1),
                "B": torch.zeros_like(stack.B).repeat(1, 1, self.num_blocks - 1),
                "block": torch.zeros(len(stack), dtype=torch.int64, device=stack.keys.device),
            }
            for stack in pairs
        )

    def begin(self, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Draw the first sketch where B is zero and A is none of the sketches, which a loaded one would be."""
        begun = []
        for stack, own in zip(pairs, factors, strict=True):
            is_new = ~own.B.flatten(1).any(dim=1)
            if self.side == "right":
                for block in range(self.num_blocks):
                    is_new &= (self._fresh(stack, block).A != own.A).flatten(1).any(dim=1)
            begun.append(_choose(is_new, self._fresh(stack, 0), own))
        return begun

    def blocks(self, state: dict[str, Tensor], factors: Factors, ctx: ForwardContext) -> Factors | None:
        """Return the frozen blocks, and zeros for those to come."""
        return Factors(state["A"], state["B"])

    def keep(self, state: State, pairs: Sequence[Stack], ctx: Context) -> tuple[Kept | None, ...]:
        """Let the sketch have no gradient."""
        kept = []
        for stack in pairs:
            yes = torch.ones(len(stack), stack.r, dtype=torch.bool, device=stack.keys.device)
            kept.append(Kept(A=yes, B=~yes) if self.side == "left" else Kept(A=~yes, B=yes))
        return tuple(kept)

    def project(
        self,
        state: State,
        pairs: Sequence[Stack],
        before: Sequence[Factors],
        after: Sequence[Factors],
        moments: tuple[Moments, Moments],
        ctx: Context,
    ) -> tuple[Sequence[Factors], Moments, State]:
        """Put the sketches back; in the last step of a block freeze it and begin the next."""
        is_left = self.side == "left"
        restored = [Factors(a.A, b.B) if is_left else Factors(b.A, a.B) for b, a in zip(before, after, strict=True)]
        if not self._ends_block(ctx):
            return restored, moments[1], state
        moved = [self._switch(*each) for each in zip(state, pairs, restored, strict=True)]
        return [factors for factors, _ in moved], moments[1], tuple(tensors for _, tensors in moved)

    def restarts(self, before: State, after: State, pairs: Sequence[Stack], ctx: Context) -> tuple[Tensor | None, ...]:
        """Restart the pairs that began a block."""
        if not self._ends_block(ctx):
            return tuple(None for _ in pairs)
        return tuple(new["block"] != old["block"] for old, new in zip(before, after, strict=True))

    def fold(self, state: State, pairs: Sequence[Stack], factors: Sequence[Factors]) -> Sequence[Factors]:
        """Put the frozen blocks behind the live one."""
        return [own.joined(Factors(t["A"], t["B"])) for own, t in zip(factors, state, strict=True)]

    def report(self, state: State, pairs: Sequence[Stack]) -> Sequence[dict[str, Tensor]]:
        """Tell `frozen_blocks` of each module."""
        return tuple({"frozen_blocks": tensors["block"]} for tensors in state)

    def _ends_block(self, ctx: Context) -> bool:
        return self.num_blocks > 1 and (ctx.step + 1) % self.block_steps == 0

    def _switch(self, tensors: dict[str, Tensor], stack: Stack, live: Factors) -> tuple[Factors, dict[str, Tensor]]:
        """Freeze the live block of every pair that has one left to begin, and begin it."""
        block = tensors["block"]
        begins = block < self.num_blocks - 1
        places = torch.arange(self.num_blocks - 1, device=block.device) == block.unsqueeze(1)
        is_here = places.repeat_interleave(stack.r, dim=1)
        A = torch.where(is_here.unsqueeze(2), live.A.repeat(1, self.num_blocks - 1, 1), tensors["A"])
        B = torch.where(is_here.unsqueeze(1), live.B.repeat(1, 1, self.num_blocks - 1), tensors["B"])
        next_block = block + begins
        for number in set(next_block[begins].tolist()):
            live = _choose(begins & (next_block == number), self._fresh(stack, number), live)
        return live, {"A": A, "B": B, "block": next_block}

    def _fresh(self, stack: Stack, block: int) -> Factors:
        """A new sketch in the parameters' dtype, and the other factor at zero."""
        A, B = torch.zeros_like(stack.A), torch.zeros_like(stack.B)
        if self.side == "left":
            return Factors(A, draw_sketch(stack.keys, B.shape[1], stack.r, stack.seed, block).to(B))
        return Factors(draw_sketch(stack.keys, stack.r, A.shape[2], stack.seed, block).to(A), B)


def _choose(rows: Tensor, these: Factors, those: Factors) -> Factors:
    where = rows.view(-1, 1, 1)
    return Factors(torch.where(where, these.A, those.A), torch.where(where, these.B, those.B))
