"""A Trainer that evaluates examples in the order of the data, whatever the order it trains in."""

from __future__ import annotations

from typing import Any

from torch.utils.data import SequentialSampler
from transformers import Trainer


class OrderedTrainer(Trainer):  # type: ignore[misc]
    """Evaluate in order: with group_by_length the Trainer would shuffle what it evaluates by the seed too.

    Two runs could then not be compared example by example.
    """

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None
