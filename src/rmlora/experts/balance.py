"""The loss that keeps every expert in use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def balance_loss(gates: Sequence[Tensor]) -> Tensor:
    """Return -log of the product of the experts' mean gates.

    For each input, q_i is the mean over the blocks of expert i's gate; the loss is -sum_i log q_i, and its mean over
    the batch is returned. It is smallest, N log N, where every expert gets its share 1 / N. MoLE, arXiv 2404.13628;
    that inputs of a batch are averaged after the logarithm is this package's reading.

    Args:
        gates: of each block `(B, N)`, rows of which sum to 1. Experts that are masked have zeros everywhere and do
            not count.

    Example:
        >>> round(float(balance_loss([torch.tensor([[0.5, 0.5]]), torch.tensor([[0.1, 0.9]])])), 4)
        1.5606
    """
    q = torch.stack(list(gates)).mean(0)
    used = (q > 0).any(0)
    return -q[:, used].log().sum(-1).mean()
