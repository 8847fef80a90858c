"""Writing what a run learnt: a plain PEFT adapter, or the whole model where there is none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

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
    with tempfile.TemporaryDirectory(prefix=".weights-", dir=folder) as temporary:
        if plan.handle is not None:
            plan.model.save_pretrained(temporary, save_embedding_layers=False)
            (Path(temporary) / "README.md").unlink(missing_ok=True)  # PEFT's empty template; ours is written later
            if initial:
                subtract_start(Path(temporary), initial)
        else:
            plan.model.save_pretrained(temporary)
            plan.processor.save_pretrained(temporary)
        files = sorted(p for p in Path(temporary).iterdir() if p.is_file())
        for file in files:
            os.replace(file, folder / file.name)
    return [file.name for file in files]


def _named(pair: Pair) -> dict[str, Tensor]:
    return {
        f"base_model.model.{pair.name}.{side}.weight": parameter.detach().cpu().clone()
        for side, parameter in zip(("lora_A", "lora_B"), pair.parameters, strict=True)
    }
