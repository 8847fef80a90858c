"""The search itself: one generation of every block by turns, of any function from factors to a loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rmlora.derivative_free.evolution import Evolution
from rmlora.derivative_free.projections import FactorPairs, Projection, Shapes, project_blocks
from rmlora.draws import hash_word, words_of
from rmlora.errors import ConfigError

Loss = Callable[[FactorPairs], float]


@dataclass
class Found:
    """What a search has found so far.

    Attributes:
        factors: by module, A and B of the best of all candidates so far.
        loss: of them.
        evaluations: how often the loss was computed, those of earlier parts of the search included.
        losses: of every candidate, a list per generation; given to `search` as `told`, it goes on from there.
        start: loss before the first generation, at A = B = 0.
    """

    factors: FactorPairs
    loss: float
    evaluations: int
    start: float
    losses: list[list[float]] = field(default_factory=list)


def search(
    loss: Loss,
    shapes: Shapes,
    *,
    dimension: int = 500,
    population: int = 20,
    evaluations: int = 8000,
    sigma: float = 1.0,
    spread: float = 0.5,
    seed: int = 0,
    told: Sequence[Sequence[float]] = (),
    after_round: Callable[[Found], None] = lambda found: None,
) -> Found:
    """Search for factors that make a loss small, by its values alone.

    Every block of modules has a CMA-ES of its own. By turns each makes one generation, with all other blocks at the
    best that is known of them; a round is one generation of every block.

    Args:
        loss: called with A and B of every module; what it does with them is its own affair, so it may be a remote
            service. A value that is no number counts as worst.
        shapes: of A `(r, d_in)` and B `(d_out, r)`, by module; names decide the blocks (`block_of`).
        dimension: numbers per block.
        population: candidates per generation, >= 4.
        evaluations: calls of `loss` in all, the one at A = B = 0 included; the last round may be cut short.
        sigma: step size that every CMA-ES begins with.
        spread: see `project_blocks`.
        seed: decides the projections and the candidates; no global generator is touched.
        told: losses of generations that were evaluated before; `loss` is not called for them, and the search ends at
            the bits of one that was never interrupted.
        after_round: called after each round.

    Returns:
        The best that was found, and all losses.

    Raises:
        ConfigError: pycma is not installed, or a setting is out of range.
        DivergedError: all candidates of a generation have a loss that is no number.

    Example:
        >>> def far(factors):
        ...     A, B = factors["h.0.q"]
        ...     return float((B @ A - 0.1).square().sum())
        >>> found = search(far, {"h.0.q": ((1, 4), (4, 1))}, dimension=16, evaluations=401, spread=0.3)
        >>> found.loss < far({"h.0.q": (torch.zeros(1, 4), torch.zeros(4, 1))}) / 2
        True

    Source:
        arXiv:2403.01754, sections 3 and 4: layers by turns, popsize 20, 8000 evaluations, sigma 1, 500 numbers per
        layer. Deviations: others are kept at their best rather than at their mean, and the variances of the maps.
    """
    if evaluations < 1 + population:
        raise ConfigError(f"{evaluations} evaluations are fewer than one generation of {population} and the start")
    blocks = project_blocks(shapes, dimension, spread, seed)
    evolutions = [Evolution(b.dimension, population, sigma, hash_word(seed, *words_of(b.block))) for b in blocks]
    best: FactorPairs = {name: pair for block in blocks for name, pair in block.factors(_zeros(block)).items()}
    start = told[0][0] if told else loss(best)
    found = Found(best, start, 1, start, [[start]])
    for generation in range((evaluations - 1) // population):
        turn = generation % len(blocks)
        known = told[generation + 1] if generation + 1 < len(told) else None
        _generation(found, loss, blocks[turn], evolutions[turn], known)
        if turn == len(blocks) - 1:
            after_round(found)
    return found


def _generation(
    found: Found, loss: Loss, block: Projection, evolution: Evolution, known: Sequence[float] | None
) -> None:
    """One generation of one block; `found` is brought up to date."""
    candidates = [torch.from_numpy(z).float() for z in evolution.ask()]
    losses = [loss(found.factors | block.factors(z)) for z in candidates] if known is None else list(known)
    evolution.tell(losses)
    found.evaluations += len(losses)
    found.losses.append(losses)
    value, z = min(zip(losses, candidates, strict=True), key=lambda pair: (pair[0] != pair[0], pair[0]))
    if value < found.loss:
        found.factors, found.loss = found.factors | block.factors(z), value


def _zeros(block: Projection) -> Tensor:
    return torch.zeros(block.dimension)
