"""Saving the adapter as the run would, and loading it by PEFT alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rmlora.doctor.failures import FAILURES, wording
from rmlora.doctor.outputs import gap, logits_of
from rmlora.doctor.subject import Saved
from rmlora.modeling import load_model
from rmlora.run.plan import Plan
from rmlora.run.weights import save_weights

_BATCH = 8


def save_and_reload(plan: Plan, initial: Mapping[str, Tensor], folder: Path) -> Saved:
    """Save the weights, load them onto a fresh base without rmlora, and compare what both models say.

    Args:
        plan: of the run; its model is only asked.
        initial: from `initial_factors`.
        folder: where to save; thrown away by the caller. A second model is in memory meanwhile.
    """
    held_out = plan.encoded["eval"]
    examples = [held_out[i] for i in range(min(_BATCH, len(held_out)))]
    try:
        expected = logits_of(plan.model, plan, examples)
        save_weights(plan, initial, folder)
        stored = _read(folder)
        lacking, num_whole = _compare_whole(plan, stored)
        model = _load(plan, folder)
        found = logits_of(model, plan, examples)
        silent = _silent(stored) if plan.handle is not None else ()
        merge_gap = _merge(model, plan, examples, found) if plan.handle is not None else None
    except FAILURES as error:
        return Saved(failure=wording(error))
    return Saved(lacking, num_whole, silent, gap(found, expected), merge_gap)


def _read(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {
        name: value for file in sorted(folder.glob("*model*.safetensors")) for name, value in load_file(file).items()
    }


def _load(plan: Plan, folder: Path) -> Any:
    device = next(plan.model.parameters()).device
    if plan.handle is None:
        return load_model(plan.config.model_copy(update={"model": str(folder)}), plan.data).model.to(device)
    import peft

    return peft.PeftModel.from_pretrained(load_model(plan.config, plan.data).model, str(folder)).to(device)


def _merge(model: Any, plan: Plan, examples: Sequence[Any], expected: dict[str, Tensor]) -> float:
    return gap(logits_of(model.merge_and_unload(), plan, examples), expected)


def _compare_whole(plan: Plan, stored: Mapping[str, Tensor]) -> tuple[tuple[str, ...], int]:
    """Name what is trained whole and not in the file, or not as it is; and count what is there."""
    names = [n for n, p in plan.model.named_parameters() if p.requires_grad and "lora_" not in n and "vera_" not in n]
    parameters = dict(plan.model.named_parameters())
    lacking = []
    for name in names:
        saved = stored.get(_saved_name(name, plan))
        if saved is None or not bool((saved.to(parameters[name].device) == parameters[name]).all()):
            lacking.append(name)
    return tuple(lacking), len(names) - len(lacking)


def _saved_name(name: str, plan: Plan) -> str:
    return name if plan.handle is None else name.replace(f".modules_to_save.{plan.handle.adapter}.", ".")


def _silent(stored: Mapping[str, Tensor]) -> tuple[str, ...]:
    second = (".lora_B.", ".lora_embedding_B", ".vera_lambda_b")
    return tuple(name for name, value in stored.items() if any(s in name for s in second) and not bool(value.any()))
