"""Measuring the averaged model: on the held-out part, on a sample of what is trained on, and the adapter itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rmlora.federated.averaging import State
from rmlora.federated.site import Site
from rmlora.files import write_bytes
from rmlora.pairs import Pair, find_pairs
from rmlora.run.folder import RunFolder
from rmlora.run.predicting import judge, predict_examples
from rmlora.run.record import measure_adapter
from rmlora.tasks.encode import head_of
from rmlora.tasks.predictions import answers


@dataclass(frozen=True)
class LiveFactors:
    """The factors of a model without a method, as `measure_adapter` reads them."""

    pairs: Sequence[Pair]

    def fold(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the factors themselves, by module."""
        return {pair.name: (pair.A.detach(), pair.B.detach()) for pair in self.pairs}


def evaluate(site: Site, state: State) -> tuple[dict[str, Any], Any]:
    """Measure a state of the trained tensors.

    Args:
        site: its model takes the state.
        state: of the tensors that are not as they were at the start.

    Returns:
        `eval_` and `train_` losses and metrics and what has become of the adapter; and the held-out part's logits
        `(n, classes)`.
    """
    site.write(state)
    found, logits = _score(site, "eval", site.encoded["eval"])
    training = site.config.training
    if training.train_eval_examples:
        sample = head_of(site.encoded["train"], training.train_eval_examples, training.seed)
        found |= _score(site, "train", sample)[0]
    return found | measure_adapter(LiveFactors(find_pairs(site.model))), logits


def write_predictions(site: Site, place: RunFolder, logits: Any) -> None:
    """Write predictions.safetensors: answers to the held-out part, and its labels."""
    from safetensors.numpy import save

    write_bytes(place.predictions, save(answers(logits, site.data.eval.labels, site.config.task)))


def _score(site: Site, part: str, encoded: Any) -> tuple[dict[str, Any], Any]:
    logits, labels = predict_examples(site.model, encoded, site.processor, site.config)
    measures = judge(logits, labels, encoded, site.config).measures
    loss = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(np.asarray(labels, dtype=np.int64)))
    return {f"{part}_loss": float(loss)} | {f"{part}_{name}": value for name, value in measures.items()}, logits
