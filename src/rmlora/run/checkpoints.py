"""Which checkpoints a run keeps: the latest by their steps, whatever the clock says."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints


class KeepLatest(TrainerCallback):  # type: ignore[misc]
    """Delete older checkpoints after each save.

    The Trainer itself would go by the time they were written, and delete the latest where a clock was set back.

    Args:
        count: how many are kept; the best one, if the run leaves that, besides.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Delete what is older than the latest ones."""
        if state.is_world_process_zero:
            rotate_checkpoints(args.output_dir, self.count, state.best_model_checkpoint, use_mtime=False)
