"""Writing what a run learnt: a plain PEFT adapter, or the whole model where there is none."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from rmlora.run.plan import Plan

# Initialisations that take part of the base weight into A and B; their adapter fits no one else's base as it is.
_MOVES_BASE = ("pissa", "olora")


class InitialAdapter:
    """The adapter before training, kept where the initialisation changed the base weights.

    With W = W_res + s B0 A0, the trained W_res + s B A equals W + s (B A - B0 A0): a plain LoRA of rank 2 r on the
    published weights, which PEFT computes if it is given A0 and B0.
    """

    def __init__(self, plan: Plan) -> None:
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        if plan.handle is not None and plan.config.lora.init_lora_weights in _MOVES_BASE:
            self.folder = tempfile.TemporaryDirectory(prefix="rmlora-initial-")
            # the class's own method: nothing has been trained yet, and nothing shall warn about that
            type(plan.model).save_pretrained(plan.model, self.folder.name)

    @property
    def settings(self) -> dict[str, Any]:
        """What `save_pretrained` has to be told."""
        return {"path_initial_model_for_weight_conversion": self.folder.name} if self.folder else {}


def save_weights(plan: Plan, initial: InitialAdapter, folder: Path) -> list[str]:
    """Save the trained weights into a folder: written beside it first, then moved in file by file.

    Args:
        plan: of the run; its model is not changed.
        initial: from before training.
        folder: the output folder, which exists.

    Returns:
        Names of the files that were written.
    """
    with tempfile.TemporaryDirectory(prefix=".weights-", dir=folder) as temporary:
        if plan.handle is not None:
            plan.model.save_pretrained(temporary, save_embedding_layers=False, **initial.settings)
            (Path(temporary) / "README.md").unlink(missing_ok=True)  # PEFT's empty template; ours is written later
        else:
            plan.model.save_pretrained(temporary)
            plan.processor.save_pretrained(temporary)
        files = sorted(p for p in Path(temporary).iterdir() if p.is_file())
        for file in files:
            os.replace(file, folder / file.name)
    return [file.name for file in files]
