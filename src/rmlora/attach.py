"""attach: one line that makes any PEFT LoRA model train by a method, under any trainer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from rmlora.binding import Binding
from rmlora.bound_layers import bindings_of, remember
from rmlora.combine import Chain, chain
from rmlora.errors import AttachError
from rmlora.handle import Attached
from rmlora.moved_base import refuse_other_start
from rmlora.pairs import Pair, find_pairs
from rmlora.saving import FoldedDelta, watch_saving
from rmlora.staged_saving import LoadBeside, SaveWider
from rmlora.transform import FORWARD_HOOKS, Transform
from rmlora.triplets import LoadTriplets, SaveTriplets, drive_models, suited
from rmlora.vectors import find_vector_pairs, refuse_hooks


def attach(
    model: nn.Module,
    method: Transform,
    *,
    adapter_name: str | None = None,
    optimizer: Optimizer | None = None,
    seed: int = 0,
    fast: bool = True,
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
        fast: let linear layers take the fast path: the same numbers up to rounding (1e-6 of their norm in float32),
            gradients of masked directions never computed. `handle.paths()` tells which layers do and why others do
            not. False keeps PEFT's own forward, operation for operation.
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
    method, pairs = _suit(method, model, adapter_name)
    binding = Binding(method, pairs[0].adapter, seed, pairs, fast=fast)
    for pair in pairs:
        remember(pair, binding)
    wrapped = _wrap(model, binding)
    if optimizer is not None:
        binding.bind(optimizer)
    return Attached(model, binding, wrapped)


def _wrap(model: nn.Module, binding: Binding) -> list[Any]:
    """Wrap what saves, loads, merges and counts; each can be restored."""
    method = binding.method
    is_triplets = method.adapts == "ADALORA"
    wider = (SaveWider, LoadBeside) if "blocks" in method.hooks() else None
    wrapped: list[Any] = list(watch_saving(model, binding, (SaveTriplets, LoadTriplets) if is_triplets else wider))
    if is_triplets:
        wrapped += drive_models(model, binding)
    elif "fold" in method.hooks():
        wrapped += [FoldedDelta(pair, binding) for pair in binding.pairs]
    if method.hooks() & FORWARD_HOOKS:
        hook = model.register_forward_pre_hook(binding.count_forward)
        wrapped.append(SimpleNamespace(restore=hook.remove))  # taken back as the other wrappers are
    return wrapped


def _suit(method: Chain, model: nn.Module, adapter_name: str | None) -> tuple[Chain, Sequence[Pair]]:
    """Find the pairs of the kind of adapter that the method trains, free of any other method, and suit it to them."""
    has_vectors = method.adapts == "VERA"
    pairs: Sequence[Pair] = find_vector_pairs(model, adapter_name) if has_vectors else find_pairs(model, adapter_name)
    for pair in pairs:
        if pair.adapter in bindings_of(pair.layer):
            raise AttachError(
                f"adapter {pair.adapter!r} already trains by a method ({pair.name}); detach it first, or join both "
                "methods with rmlora.chain"
            )
    method = suited(refuse_hooks(method) if has_vectors else method, model, pairs)
    if "begin" in method.hooks():
        refuse_other_start(model, pairs[0].adapter)
    return method, pairs


def attached(model: nn.Module) -> list[Attached]:
    """Return a handle for every method at work on a model, as for adapters made with `RMLoraConfig`.

    Handles found this way report metrics and fold; detach through the handle that `attach` returned.

    Example:
        >>> attached(nn.Linear(2, 2))
        []
    """
    bindings = {id(binding): binding for module in model.modules() for binding in bindings_of(module).values()}
    return [Attached(model, binding) for binding in bindings.values()]
