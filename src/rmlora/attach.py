"""attach: one line that makes any PEFT LoRA model train by a method, under any trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rmlora.analysis.gram import gram_columns, gram_rows, residual
from rmlora.binding import Binding
from rmlora.combine import chain
from rmlora.errors import AttachError
from rmlora.live import FORWARD_HOOKS
from rmlora.pairs import Kept, Pair, adapters_of, find_pairs
from rmlora.prune_export import PrunedAdapter, export_pruned
from rmlora.saving import FoldedDelta, warn_if_idle, watch_saving
from rmlora.transform import Transform
from rmlora.triplets import LoadTriplets, SaveTriplets, drive_models, suited

_BINDINGS = "rmlora_bindings"
"""Attribute of a PEFT layer: its bindings by adapter name, so that they live, copy and die with the model."""


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
        return sum(
            value.numel() for tensors in self._binding.state for value in tensors.values() if value.requires_grad
        )

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
                modules[pair.name] |= {"kept": len(kept[pair.name][0]), "r": pair.r}
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

    def export(self, output: str | Path) -> PrunedAdapter:
        """Save the adapter as plain LoRA without the directions that add nothing; see `export_pruned`.

        Args:
            output: a folder that does not exist yet, or is empty. It appears whole or not at all.

        Raises:
            AdapterError: `output` holds something already, or cannot be written.
        """
        with tempfile.TemporaryDirectory(prefix="rmlora-") as whole:
            self._model.save_pretrained(whole, selected_adapters=[self.adapter])  # type: ignore[operator]
            folder = Path(whole) if self.adapter == "default" else Path(whole) / self.adapter
            return export_pruned(folder, output)

    def detach(self) -> None:
        """Fold into the live factors and leave a model that rmlora no longer touches.

        Outputs stay the same; what the method carried in the optimizer's state stays there, unused. Warns if the
        method never saw an optimizer step.

        Raises:
            AttachError: it was detached already.
        """
        if not self.is_attached:
            raise AttachError("already detached; call rmlora.attach again to go on training by a method")
        warn_if_idle(self._binding)
        folded = self.fold() if "fold" in self.method.hooks() and self.method.adapts == "LORA" else {}
        with torch.no_grad():
            for pair in self._binding.pairs:
                for parameter, value in zip(pair.parameters, folded.get(pair.name, ()), strict=False):
                    parameter.copy_(value.view_as(parameter))
        for wrapped in self._wrapped:
            wrapped.restore()
        for pair in self._binding.pairs:
            getattr(pair.layer, _BINDINGS, {}).pop(self.adapter, None)
        self._binding.release()


def attach(
    model: nn.Module,
    method: Transform,
    *,
    adapter_name: str | None = None,
    optimizer: Optimizer | None = None,
    seed: int = 0,
    provides: Iterable[str] = (),
) -> Attached:
    """Make a PEFT LoRA model train by a method; nothing else in the training code changes.

    The method acts on gradients, during backward and when whatever optimizer holds the factors steps, so there is no
    callback to forget. Its counters travel in the optimizer's own state: a loop that checkpoints its optimizer resumes
    exactly. The adapter stays plain LoRA.

    Args:
        model: a PEFT model (or a module that contains PEFT's LoRA layers). Changed in place: the modules that hold A
            and B change class, `save_pretrained` and `load_adapter` are wrapped on the instance.
        method: a method such as `rmlora.rm_lora()`, or any transform or chain.
        adapter_name: which adapter; None means the active one. Attach again for a second adapter.
        optimizer: the optimizer, if it exists already. Without it, the first training forward looks for the live
            optimizer that holds the factors. Needed only when resuming under `torch.compile`, or when several
            optimizers hold them.
        seed: seed of the masks. The same seed gives the same masks on every process and on resume.
        provides: what the caller sees to that attaching alone cannot (see `Transform.needs`); for entry points.

    Returns:
        A handle: `len(handle)` pairs, `metrics()`, `fold()`, `detach()`.

    Raises:
        AttachError: the model has no LoRA modules (the message names what was found), the adapter already has a
            method, factors are flattened or sharded, or the method needs more than being attached.
        MethodError: the method does not suit a module, such as more directions than r.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> base = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        >>> model = get_peft_model(base, LoraConfig(r=4, target_modules=["0"]))
        >>> handle = attach(model, chain())
        >>> len(handle), handle.pairs[0].name
        (1, '0')
    """
    method = chain(method)
    unmet = method.needs - frozenset(provides)
    if unmet:
        raise AttachError(
            f"this method needs {', '.join(sorted(unmet))}, which attaching alone cannot give; use `rmlora train`, or "
            "the entry point its page in docs/methods names"
        )
    pairs = find_pairs(model, adapter_name)
    for pair in pairs:
        if pair.adapter in bindings_of(pair.layer):
            raise AttachError(
                f"adapter {pair.adapter!r} already trains by a method ({pair.name}); detach it first, or join both "
                "methods with rmlora.chain"
            )
    method = suited(method, model, pairs)
    binding = Binding(method, pairs[0].adapter, seed, pairs)
    for pair in pairs:
        remember(pair, binding)
    is_triplets = method.adapts == "ADALORA"
    wrapped: list[Any] = list(watch_saving(model, binding, (SaveTriplets, LoadTriplets) if is_triplets else None))
    if is_triplets:
        wrapped += drive_models(model)
    elif "fold" in method.hooks():
        wrapped += [FoldedDelta(pair, binding) for pair in pairs]
    if method.hooks() & FORWARD_HOOKS:
        hook = model.register_forward_pre_hook(binding.count_forward)
        wrapped.append(SimpleNamespace(restore=hook.remove))  # taken back as the other wrappers are
    if optimizer is not None:
        binding.bind(optimizer)
    return Attached(model, binding, wrapped)


def attached(model: nn.Module) -> list[Attached]:
    """Return a handle for every method at work on a model, as for adapters made with `RMLoraConfig`.

    Handles found this way report metrics and fold; detach through the handle that `attach` returned.

    Example:
        >>> attached(nn.Linear(2, 2))
        []
    """
    bindings = {id(binding): binding for module in model.modules() for binding in bindings_of(module).values()}
    return [Attached(model, binding) for binding in bindings.values()]


def remember(pair: Pair, binding: Binding) -> None:
    """Let the pair's layer hold the binding, so that it lives as long as the model."""
    pair.layer.__dict__.setdefault(_BINDINGS, {})[pair.adapter] = binding


def bindings_of(layer: nn.Module) -> dict[str, Binding]:
    """Return a layer's bindings by adapter name; those whose adapter was deleted are forgotten here."""
    bindings: dict[str, Binding] = getattr(layer, _BINDINGS, {})
    for adapter in [name for name in bindings if name not in adapters_of(layer)]:
        bindings.pop(adapter).release()
    return bindings
