"""A Trainer that evaluates examples in the order of the data, and trains in the order the method needs."""

from __future__ import annotations

from typing import Any

from torch.utils.data import SequentialSampler
from transformers import Trainer

from rmlora.two_parts import TwoPartBatches


class OrderedTrainer(Trainer):  # type: ignore[misc]
    """Evaluate in order: with group_by_length the Trainer would shuffle what it evaluates by the seed too.

    Two runs could then not be compared example by example. Where a method learns from two parts of the training set,
    `batches` says which examples come when.
    """

    batches: TwoPartBatches | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return super()._get_train_sampler(train_dataset) if self.batches is None else self.batches.flat()

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None
