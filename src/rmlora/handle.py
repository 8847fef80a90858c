"""What `attach` returns: a view of the method at work, and the way to end it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rmlora.analysis.gram import gram_columns, gram_rows, residual
from rmlora.binding import Binding
from rmlora.bound_layers import bindings_of, forget
from rmlora.errors import AttachError
from rmlora.moved_base import read_start, subtract_start
from rmlora.pairs import Kept, Pair
from rmlora.prune_export import PrunedAdapter, export_pruned
from rmlora.saving import warn_if_idle
from rmlora.shards import copy_each, has_shards
from rmlora.transform import Transform
from rmlora.truncated_export import TruncatedAdapter, export_truncated
from rmlora.vectors import write_plain_form


class Attached:
    """What `attach` returns: a view of the method at work, and the way to end it.

    The method lives with the model, not with this handle: dropping the handle changes nothing. As a context manager it
    detaches at the end.
    """

    def __init__(self, model: nn.Module, binding: Binding, wrapped: Iterable[Any] = ()) -> None:
        self._model = model
        self._binding = binding
        self._wrapped = list(wrapped)

    def __len__(self) -> int:
        return len(self._binding.pairs)

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.is_attached:
            self.detach()

    def __repr__(self) -> str:
        return f"Attached({len(self)} pairs, adapter={self.adapter!r}, step={self.step}, method={self.method!r})"

    @property
    def method(self) -> Transform:
        """The method, as a chain."""
        return self._binding.method

    @property
    def adapter(self) -> str:
        """The adapter's name."""
        return self._binding.adapter

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The factor pairs it acts on."""
        return tuple(self._binding.pairs)

    @property
    def step(self) -> int:
        """Optimizer steps completed."""
        return self._binding.step

    @property
    def num_learnt(self) -> int:
        """Entries that the method trains beside the model's parameters: SoRA's gates."""
        state, gathered = self._binding.state, self._binding.method.gathers
        learning = [v for tensors in state for key, v in tensors.items() if v.requires_grad and key not in gathered]
        return sum(value.numel() for value in learning)

    @property
    def is_attached(self) -> bool:
        """False after `detach`."""
        return any(bindings_of(pair.layer).get(self.adapter) is self._binding for pair in self._binding.pairs)

    @property
    def late(self) -> dict[str, str]:
        """Modules whose mask acts at the optimizer step instead of during backward, with the reason."""
        return {
            pair.name: f"{type(pair.layer).__name__} does not call modules for A and B"
            for pair in self._binding.pairs
            if pair not in self._binding.gates
        }

    def paths(self) -> dict[str, str]:
        """Return how each module was last computed.

        Returns:
            by name: "fused", "merged" or "added" on the fast path (see `rmlora.kernels`); "reference: WHY" where PEFT's
            own forward ran; "not called yet".
        """
        return {pair.name: self._binding.path_of(pair) for pair in self._binding.pairs}

    def masks(self) -> list[tuple[Pair, Kept]]:
        """Return the pairs of which not all directions learn at the coming step, with a copy of their masks `(r,)`."""
        masks = zip(self._binding.stacks, self._binding.learning(), strict=True)
        return [
            (pair, Kept(mask.A[row].clone(), mask.B[row].clone()))
            for stack, mask in masks
            if mask is not None
            for row, pair in enumerate(stack.pairs)
        ]

    def kept(self) -> dict[str, tuple[list[int], list[int]]]:
        """Return, for each module, which rows of A and which columns of B learn at the coming step."""
        kept = {pair.name: (list(range(pair.r)), list(range(pair.r))) for pair in self._binding.pairs}
        for pair, mask in self.masks():
            kept[pair.name] = (mask.A.nonzero().flatten().tolist(), mask.B.nonzero().flatten().tolist())
        return kept

    @torch.no_grad()
    def metrics(self) -> dict[str, Any]:
        """Return penalty, Gram residuals and kept directions, summed and per module.

        Returns:
            `penalty`: Eq. 10 without its weight, `||A A^T - I||_F^2 + ||B^T B - I||_F^2`; `residual_A` and
            `residual_B`: its two parts; `overlap_A` and `overlap_B`: the off-diagonal share of each; `kept`: number
            of directions that learn at the coming step, of `r`; and what the links report of themselves (SoRA: `open`
            gates, and `silent`, 1 for a module without any). All summed over modules; `modules` holds the same by
            name, and `step` the optimizer steps so far.
        """
        kept = self.kept()
        modules: dict[str, dict[str, float]] = {}
        for stack, reported in zip(self._binding.stacks, self._binding.report(), strict=True):
            now = stack.renew()
            own = {key: value.tolist() for key, value in reported.items()}
            A, B = residual(gram_rows(now.A)), residual(gram_columns(now.B))
            columns = [A.total + B.total, A.total, B.total, A.overlap, B.overlap]
            for row, (pair, values) in enumerate(zip(stack.pairs, torch.stack(columns, dim=1).tolist(), strict=True)):
                names = ("penalty", "residual_A", "residual_B", "overlap_A", "overlap_B")
                modules[pair.name] = dict(zip(names, values, strict=True))
                modules[pair.name] |= {"kept": max(map(len, kept[pair.name])), "r": pair.r}
                modules[pair.name] |= {key: value[row] for key, value in own.items()}
        ordered = {pair.name: modules[pair.name] for pair in self._binding.pairs}
        keys = dict.fromkeys(key for values in ordered.values() for key in values)
        totals = {key: sum(values.get(key, 0) for values in ordered.values()) for key in keys}
        return {"step": self.step, **totals, "modules": ordered}

    def bind(self, optimizer: Optimizer) -> None:
        """Say which optimizer trains the adapter from now on, and take over the step its state carries.

        Needed only where it cannot be found alone: see `optimizer` of `attach`.

        Raises:
            AttachError: it holds none of the adapter's factors.
            StateError: its checkpoint was written with another seed.
        """
        self._binding.bind(optimizer)

    def fold(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return factors (A `(r, d_in)`, B `(d_out, r)`) of plain LoRA with the same outputs, by module name.

        Live tensors stay as they are. For RM-LoRA these are copies of the factors themselves.
        """
        folded: dict[str, tuple[Tensor, Tensor]] = {}
        for stack, factors in zip(self._binding.stacks, self._binding.fold(), strict=True):
            for row, pair in enumerate(stack.pairs):
                folded[pair.name] = (factors.A[row].clone(), factors.B[row].clone())
        return folded

    @overload
    def export(self, output: str | Path, rank: None = None, *, start: str | Path | None = None) -> PrunedAdapter: ...

    @overload
    def export(self, output: str | Path, rank: int, *, start: str | Path | None = None) -> TruncatedAdapter: ...

    def export(
        self, output: str | Path, rank: int | None = None, *, start: str | Path | None = None
    ) -> PrunedAdapter | TruncatedAdapter:
        """Save the adapter as plain LoRA without the directions that add nothing, or at a smaller rank.

        Args:
            output: a folder that does not exist yet, or is empty. It appears whole or not at all.
            rank: None drops exact zeros, and outputs stay equal (see `export_pruned`); a rank >= 1 gives every module
                the best update of that rank, whose relative errors are returned (see `export_truncated`).
            start: folder of this adapter as `save_pretrained` wrote it before training; needed where it moved the base
                weights (PiSSA, OLoRA), to write an adapter of twice the rank for the published ones.

        Raises:
            AdapterError: `output` holds something already, or cannot be written; `rank` is below 1; `start` is missing,
                or not this adapter.
        """
        with tempfile.TemporaryDirectory(prefix="rmlora-") as whole:
            folder = self._save_whole(Path(whole))
            if start is not None:
                subtract_start(folder, read_start(start, folder, "blocks" in self.method.hooks()))
            return export_pruned(folder, output) if rank is None else export_truncated(folder, output, rank)

    def _save_whole(self, folder: Path) -> Path:
        if has_shards(self._model):
            raise AttachError(
                "FSDP2 shards this model; call save_pretrained on every process, then rmlora.export_pruned"
            )
        if self.method.adapts == "VERA":
            write_plain_form(self._model, self.pairs, folder)
            return folder
        self._model.save_pretrained(folder, selected_adapters=[self.adapter])  # type: ignore[operator]
        return folder if self.adapter == "default" else folder / self.adapter

    def restores(self, wrapper: Any) -> None:
        """Let `detach` also restore what an entry point changed."""
        self._wrapped.append(wrapper)

    def detach(self) -> None:
        """Fold into the live factors and leave a model that rmlora no longer touches.

        Outputs stay the same; what the method carried in the optimizer's state stays there, unused. Warns if the
        method never saw an optimizer step.

        Raises:
            AttachError: it was detached already, or the method holds blocks beside the pairs, for which live factors
                of rank r have no room.
        """
        if not self.is_attached:
            raise AttachError("already detached; call rmlora.attach again to go on training by a method")
        is_folding = "fold" in self.method.hooks() and (self.method.adapts == "LORA" or self._binding.triplets)
        folded = self.fold() if is_folding else {}
        for pair in self._binding.pairs if folded else ():
            _refuse_wider(pair, len(folded[pair.name][0]))
        warn_if_idle(self._binding)
        with torch.no_grad():
            for pair in self._binding.pairs:
                for parameter, value in zip(pair.parameters, folded.get(pair.name, ()), strict=False):
                    copy_each([parameter], [value.view(parameter.shape)])
                if pair.E is not None and folded:
                    pair.E.fill_(1.0)
        for wrapped in self._wrapped:
            wrapped.restore()
        for pair in self._binding.pairs:
            forget(pair)
        self._binding.release()


def _refuse_wider(pair: Pair, found: int) -> None:
    if found != pair.r:
        raise AttachError(
            f"{pair.name} has {found} directions with its blocks and live factors for {pair.r}, so detaching would "
            "lose some; save with save_pretrained or handle.export, or call merge_and_unload"
        )
