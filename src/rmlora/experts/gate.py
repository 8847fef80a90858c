"""The gate of one block: which expert counts how much, read off what they all do to the input."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from rmlora.errors import MethodError

EPSILON = 1e-12  # experts change a block's output by little: the usual 1e-5 would drown it


class Gate(nn.Module):
    """G = softmax(eps / tau), eps = mean over tokens of norm(concat_i E_i(x)) times e.

    `norm` gives the N d numbers of a token mean 0 and variance 1. MoLE (arXiv 2404.13628) flattens the tokens instead
    of averaging them, which needs inputs of one length; e is then as long as the longest input and here is not.

    Args:
        experts: N.
        width: d, of the block's output.
        temperature: tau at the start; it is learnt as its logarithm, and so stays above 0.

    Raises:
        MethodError: the temperature is not above 0.

    Example:
        >>> gate = Gate(experts=2, width=3)
        >>> gate(torch.randn(2, 1, 4, 3)).tolist()
        [[0.5, 0.5]]
    """

    def __init__(self, experts: int, width: int, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise MethodError(f"the temperature of a gate must be above 0, got {temperature:g}")
        self.weight = nn.Parameter(torch.zeros(experts * width, experts))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    @property
    def temperature(self) -> Tensor:
        """tau."""
        return self.log_temperature.exp()

    def forward(self, outputs: Tensor, mask: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Weigh the experts for each input.

        Args:
            outputs: `(N, B, L, d)` what each expert adds to the block's output, or `(N, B, d)`.
            mask: `(B, L)`, 1 for tokens that count; None counts all.
            keep: `(N,)` which experts take part; None lets all.

        Returns:
            `(B, N)`, rows that sum to 1; exactly 0 for experts that take no part.
        """
        joined = outputs.movedim(0, -2).flatten(-2).to(self.weight.dtype)
        normal = functional.layer_norm(joined, joined.shape[-1:], eps=EPSILON)
        eps = _mean_over_tokens(normal, mask) @ self.weight
        logits = eps / self.temperature
        if keep is not None:
            logits = logits.masked_fill(~keep, -torch.inf)
        return logits.softmax(-1)


def _mean_over_tokens(x: Tensor, mask: Tensor | None) -> Tensor:
    """Average `(B, ..., D)` over all but the first and last dimension."""
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    if mask is None or mask.shape != flat.shape[:2]:
        return flat.mean(1)
    weights = mask.to(flat.dtype).unsqueeze(-1)
    return (flat * weights).sum(1) / weights.sum(1).clamp_min(1)
