"""A Trainer that evaluates examples in the order of the data, and trains in the order the method needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer

from rmlora.run.divergence import check_step, first_broken_output, remedy
from rmlora.run.folder import RunFolder
from rmlora.two_parts import TwoPartBatches


class OrderedTrainer(Trainer):  # type: ignore[misc]
    """Evaluate in order: with group_by_length the Trainer would shuffle what it evaluates by the seed too.

    Two runs could then not be compared example by example. Where a method learns from two parts of the training set,
    `batches` says which examples come when.
    """

    batches: TwoPartBatches | None = None

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Take a step, and stop there if a number is lost in it."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        is_scaled = self.args.fp16  # a scaler skips steps with infinite gradients, and that is no fault
        where = f"at step {self.state.global_step + 1} of {self.state.max_steps}"
        looks = self.accelerator.sync_gradients and not is_scaled
        check_step(loss, model, looks, where, self._remedy, lambda: self._first_lost(inputs))
        return loss

    def _remedy(self) -> str:
        return remedy(RunFolder(Path(self.args.output_dir).parent))

    def _first_lost(self, inputs: Any) -> str | None:
        return first_broken_output(self.model, lambda: self.compute_loss(self.model, self._prepare_inputs(inputs)))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return super()._get_train_sampler(train_dataset) if self.batches is None else self.batches.flat()

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None
