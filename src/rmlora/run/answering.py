"""The HF Trainer of question answering: windows in, one answer in words for each question out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmlora.files import write_bytes, write_text
from rmlora.run.folder import RunFolder
from rmlora.run.ordered import OrderedTrainer
from rmlora.run.plan import Plan
from rmlora.run.predictions import KeepPredictions
from rmlora.tasks.squad_answers import decode, score
from rmlora.tasks.squad_windows import Windows, pad_windows, windows_of


class AnswerTrainer(OrderedTrainer):
    """Train start and end of the answer; evaluate windows in their order and know which part they are of."""

    part = "eval"

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Give the model its labels under the names it knows; the loss is the model's own."""
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        inputs |= {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Evaluate one part, or each of several by its name."""
        self.part = metric_key_prefix.removeprefix("eval_")
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)


class KeepAnswers(KeepPredictions):
    """Turn each evaluation's logits into answers, and write those of the last one.

    Args:
        folder: of the run.
        parts: all windows of "train" and "eval".
        part: which of them is being evaluated.
        n_best: as in `answers.n_best`.
        max_answer_length: as in `answers.max_answer_length`.
    """

    def __init__(
        self,
        folder: RunFolder,
        parts: Mapping[str, Windows],
        part: Callable[[], str],
        n_best: int,
        max_answer_length: int,
    ) -> None:
        super().__init__(folder, "question-answering")
        self.parts = parts
        self.part = part
        self.limits = (n_best, max_answer_length)
        self.answers: dict[int, str] = {}

    def measure(self, output: Any) -> dict[str, float]:
        """Compute exact match and F1, 0 to 1, of one evaluation's logits."""
        starts, ends = output.predictions
        windows = self.parts[self.part()]
        self.answers = decode(starts, ends, output.label_ids[:, 2], windows, *self.limits)
        exact, f1 = score(self.answers, windows)
        self.latest = (exact, f1)
        return {"f1": float(f1.mean()), "exact_match": float(exact.mean())}

    def write(self) -> None:
        """Write predictions.json, answers by the question's id, and predictions.safetensors, their scores."""
        from safetensors.numpy import save

        assert self.latest is not None
        exact, f1 = self.latest
        asked = self.parts["eval"].examples.labels
        texts = {asked[owner].id: text for owner, text in self.answers.items()}
        write_text(self.folder.answers, json.dumps(texts, indent=2, ensure_ascii=False) + "\n")
        values = f1.astype(np.float32)
        scores = {"correct": exact, "values": values, "f1": values.copy(), "exact_match": exact.astype(np.float32)}
        write_bytes(self.folder.predictions, save(scores))


def make_answer_trainer(plan: Plan, callbacks: Sequence[Any]) -> Any:
    """Build the Trainer of question answering.

    Args:
        plan: of the run.
        callbacks: what records and shows; run in this order.
    """
    limits = plan.config.answers
    keeper = KeepAnswers(
        RunFolder(Path(str(plan.config.output))),
        plan.encoded,
        lambda: trainer.part,
        limits.n_best,
        limits.max_answer_length,
    )
    count, seed = plan.config.training.train_eval_examples, plan.config.training.seed
    parts = {"train": windows_of(plan.encoded["train"], count, seed)} if count else {}
    trainer = AnswerTrainer(
        model=plan.model,
        args=plan.arguments,
        train_dataset=plan.encoded["train"],
        eval_dataset={**parts, "eval": plan.encoded["eval"]},
        data_collator=pad_windows(plan.processor),
        compute_metrics=keeper.measure,
        callbacks=[keeper, *callbacks],
    )
    return trainer
