"""What a classification layer's update has become: ranks, with their tolerance, and orthogonality."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rmlora.analysis.gram import penalty
from rmlora.analysis.orthogonality import orthogonality_excess, orthogonality_floor
from rmlora.analysis.spectra import (
    default_tolerance,
    effective_rank,
    numerical_rank,
    singular_values,
    stable_rank,
)
from rmlora.heads.layer import Layer
from rmlora.pairs import Factors


def spectrum(layer: Layer) -> Tensor:
    """Return the singular values of dW, `(min(r, outputs, d_in),)`, in descending order."""
    A, B, scale = layer.update()
    if layer.handle is None:
        sigma: Tensor = torch.linalg.svdvals(B.double())
        return sigma
    return singular_values(Factors(A.double().unsqueeze(0), B.double().unsqueeze(0)), scale)[0]


@torch.no_grad()
def measure_update(layer: Layer) -> dict[str, Any]:
    """Measure dW by its spectrum.

    Args:
        layer: in training; not mutated.

    Returns:
        penalty (of the live factors, unweighted; absent without an adapter), effective_rank, stable_rank,
        rank (numerical, of singular values above rank_tolerance times the largest), orthogonality_loss
        `||dW dW^T - I||_F^2` as in the paper's Table 5, the orthogonality_floor no dW of that rank gets below, and
        orthogonality_excess, the loss above it: the names a run of the whole model records.
    """
    outputs, d_in = layer.W0.shape
    sigma = spectrum(layer).unsqueeze(0)
    tolerance = default_tolerance(outputs, d_in, layer.W0.dtype)
    floor = float(orthogonality_floor(sigma.shape[-1], outputs, d_in))
    excess = float(orthogonality_excess(sigma))
    row: dict[str, Any] = {}
    if layer.handle is not None:
        pair = layer.handle.pairs[0]
        row["penalty"] = float(penalty(Factors(pair.A.detach().unsqueeze(0), pair.B.detach().unsqueeze(0))))
    return row | {
        "effective_rank": float(effective_rank(sigma)),
        "stable_rank": float(stable_rank(sigma)),
        "rank": float(numerical_rank(sigma, tolerance)),
        "orthogonality_loss": floor + excess,
        "orthogonality_floor": floor,
        "orthogonality_excess": excess,
        "rank_tolerance": tolerance,
    }
