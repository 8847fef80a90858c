"""Writing what a run learnt: a plain PEFT adapter, or the whole model where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel
from torch import Tensor

from rmlora.files import move_in
from rmlora.moved_base import subtract_start
from rmlora.pairs import Pair
from rmlora.prune_export import MOVES_BASE
from rmlora.run.plan import Plan


def initial_factors(plan: Plan) -> dict[str, Tensor]:
    """Keep A0 and B0 if the initialisation changed the base weights; to be called before training.

    Returns:
        Copies by the names of a saved adapter; empty where the base is as it was published.
    """
    if plan.config.lora.init_lora_weights not in MOVES_BASE or plan.config.init_adapter is not None:
        return {}
    return {name: factor for pair in plan.pairs for name, factor in _named(pair).items()}


def save_weights(plan: Plan, initial: Mapping[str, Tensor], folder: Path) -> list[str]:
    """Save the trained weights into a folder: written beside it first, then moved in file by file.

    Args:
        plan: of the run; its model is not changed.
        initial: from `initial_factors`.
        folder: the output folder, which exists.

    Returns:
        Names of the files that were written.
    """

    def write(place: Path) -> None:
        if plan.handle is None:
            plan.model.save_pretrained(place)
            plan.processor.save_pretrained(place)
            return
        _write_adapter(plan.model, place)
        if initial:
            subtract_start(place, initial)

    return move_in(folder, write)


def save_adapter(model: PeftModel, folder: Path, *, state: bool) -> list[str]:
    """Save an adapter as PEFT does, all of its files or none.

    Args:
        model: not changed.
        folder: exists.
        state: also what rmlora needs to go on training; without it the files are those that PEFT itself would read.

    Returns:
        Names of the files that were written.
    """

    def write(place: Path) -> None:
        _write_adapter(model, place)
        for file in list(place.iterdir()):
            if not state and not file.name.startswith("adapter_"):
                file.unlink()

    return move_in(folder, write)


def _write_adapter(model: PeftModel, place: Path) -> None:
    model.save_pretrained(str(place), save_embedding_layers=False)
    (place / "README.md").unlink(missing_ok=True)  # PEFT's empty template; ours is written later


def _named(pair: Pair) -> dict[str, Tensor]:
    return {
        f"base_model.model.{pair.name}.{side}.weight": parameter.detach().cpu().clone()
        for side, parameter in zip(("lora_A", "lora_B"), pair.parameters, strict=True)
    }
