"""Averaging what several instances of a model answered, a few of them at a time."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from rmlora.errors import MethodError

Average = Literal["logits", "probabilities"]
AVERAGES: tuple[Average, ...] = ("logits", "probabilities")


class RunningAverage:
    """The average of one output over instances, which come in chunks.

    `"logits"` is the mean of the outputs themselves. `"probabilities"` is the logarithm of the mean of the
    distributions they stand for, computed without leaving logarithms, so a softmax of it gives the mean.

    Args:
        average: which of the two.
        is_multilabel: whether every logit is a yes or no of its own (a sigmoid) instead of one of a choice (a
            softmax over the last dimension).

    Example:
        >>> mean = RunningAverage("probabilities")
        >>> mean.add(torch.tensor([[[0.0, 0.0]], [[9.0, -9.0]]]))
        >>> mean.finish().softmax(-1)
        tensor([[0.7500, 0.2500]])
    """

    def __init__(self, average: Average, is_multilabel: bool = False) -> None:
        self.average = average
        self.is_multilabel = is_multilabel
        self.count = 0
        self.sums: tuple[Tensor, ...] = ()
        self.dtype = torch.float32

    def add(self, outputs: Tensor) -> None:
        """Take the outputs of some instances, `(instances, batch, ...)`."""
        self.dtype = outputs.dtype
        values = outputs if outputs.dtype == torch.float64 else outputs.float()
        if self.average == "logits":
            new: tuple[Tensor, ...] = (values.sum(0),)
            self.sums = new if not self.sums else (self.sums[0] + new[0],)
        else:
            logs = (logsigmoid(values), logsigmoid(-values)) if self.is_multilabel else (log_softmax(values, -1),)
            new = tuple(torch.logsumexp(log, 0) for log in logs)
            self.sums = tuple(map(torch.logaddexp, self.sums, new)) if self.sums else new
        self.count += len(outputs)

    def finish(self) -> Tensor:
        """Return the average, `(batch, ...)`, in the dtype of the outputs."""
        if self.average == "logits":
            return (self.sums[0] / self.count).to(self.dtype)
        if self.is_multilabel:
            return (self.sums[0] - self.sums[1]).to(self.dtype)
        return (self.sums[0] - math.log(self.count)).to(self.dtype)


def check_average(average: str) -> Average:
    """Return the way to average that a name means.

    Raises:
        MethodError: there is no such way.

    Example:
        >>> check_average("logits")
        'logits'
    """
    for known in AVERAGES:
        if average == known:
            return known
    raise MethodError(f'average must be "logits" or "probabilities", got {average!r}')
