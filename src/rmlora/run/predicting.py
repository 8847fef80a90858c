"""Predicting without a Trainer: what a model, or an ensemble of its instances, answers to encoded examples."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from rmlora.config import RunConfig
from rmlora.run.trainer import collate, measure_outputs
from rmlora.tasks.calibration import reliability_bins
from rmlora.tasks.completions import completion_losses
from rmlora.tasks.predictions import answers
from rmlora.tasks.squad_answers import decode, score


@dataclass(frozen=True)
class Judged:
    """Answers and what they are worth.

    Attributes:
        measures: every metric of the task by name; of classifiers `ece` and `brier` too.
        arrays: what is kept of each example, as in predictions.safetensors.
        texts: of question answering, the answer by the question's index.
    """

    measures: dict[str, float]
    arrays: dict[str, Any]
    texts: dict[int, str] = field(default_factory=dict)

    @property
    def reliability(self) -> dict[str, Any]:
        """`reliability`, the bins of a classifier; nothing for other tasks."""
        if "logits" not in self.arrays:
            return {}
        return {"reliability": reliability_bins(self.arrays["logits"], self.arrays["labels"])}


@torch.no_grad()
def predict_examples(model: Any, encoded: Any, processor: Any, config: RunConfig) -> tuple[Any, Any]:
    """Answer examples, in their order.

    Args:
        model: or an `Ensemble` of it; left in evaluation mode.
        encoded: what the model reads, with labels.
        processor: its tokenizer or image processor.
        config: of the run; the batches are those of its evaluation, in its precision.

    Returns:
        Outputs and labels, as a Trainer would collect them: `(n, classes)` logits; starts and ends of an answer; of
        causal-lm `(n, 2)` losses.
    """
    model.eval()
    size = config.training.eval_batch_size
    batches = torch.utils.data.DataLoader(encoded, size, collate_fn=collate(config.task, processor))
    outputs, labels = [], []
    with _autocast(model, config):
        for batch in batches:
            own = dict(batch)
            truth = own.pop("labels")
            found = model(**{name: value.to(model.device) for name, value in own.items()})
            outputs.append(_answer(found, truth, config))
            labels.append(truth)
    if config.task == "causal-lm":
        return np.concatenate([part for (part,) in outputs]), None
    joined = tuple(_join(parts) for parts in zip(*outputs, strict=True))
    truths = torch.cat(labels).numpy()
    return (joined if config.task == "question-answering" else joined[0]), truths


def judge(outputs: Any, labels: Any, encoded: Any, config: RunConfig) -> Judged:
    """Measure answers.

    Args:
        outputs: from `predict_examples`.
        labels: likewise.
        encoded: the examples; of question answering the windows.
        config: of the run.
    """
    if config.task == "question-answering":
        limits = config.answers.n_best, config.answers.max_answer_length
        starts, ends = outputs
        texts = decode(starts, ends, labels[:, 2], encoded, *limits)
        exact, f1 = score(texts, encoded)
        arrays = {"correct": exact, "values": f1.astype(np.float32), "f1": f1.astype(np.float32)}
        arrays["exact_match"] = exact.astype(np.float32)
        return Judged({"f1": float(f1.mean()), "exact_match": float(exact.mean())}, arrays, texts)
    measures = measure_outputs(SimpleNamespace(predictions=outputs, label_ids=labels), config.task)
    return Judged(measures, answers(outputs, labels, config.task))


def _answer(found: Any, labels: torch.Tensor, config: RunConfig) -> tuple[Any, ...]:
    """What is kept of a batch's outputs, in float32."""
    if config.task == "question-answering":
        return found["start_logits"].float().cpu().numpy(), found["end_logits"].float().cpu().numpy()
    logits = found["logits"]
    kept = completion_losses(logits, labels.to(logits.device)) if config.task == "causal-lm" else logits
    return (kept.float().cpu().numpy(),)


def _join(parts: tuple[Any, ...]) -> Any:
    """Join batches; those of windows are as long as their longest."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts])


def _autocast(model: Any, config: RunConfig) -> AbstractContextManager[Any]:
    dtypes: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if config.training.precision == "fp32":
        return nullcontext()
    return torch.autocast(model.device.type, dtypes[config.training.precision])
