"""CMA-ES for one block: candidates out, losses in; from pycma, with random numbers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmlora.errors import ConfigError, DivergedError


class Evolution:
    """One covariance matrix adaptation, deterministic given its seed and the losses it was told.

    Args:
        dimension: numbers of a candidate.
        population: candidates per generation.
        sigma: step size that it begins with.
        seed: of its random numbers; numpy's global generator is not touched.

    Raises:
        ConfigError: pycma is not installed.

    Source:
        Hansen, The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772, as PyPI's `cma` implements it.
    """

    def __init__(self, dimension: int, population: int, sigma: float, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        options = {
            "popsize": population,
            "randn": lambda *shape: self._generator.standard_normal(shape),
            "seed": np.nan,  # pycma then leaves numpy's global generator alone
            "verbose": -9,
        }
        self._strategy: Any = import_cma().CMAEvolutionStrategy(np.zeros(dimension), sigma, options)
        self._asked: list[Any] = []

    def ask(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the candidates of the next generation, `(population, dimension)`."""
        self._asked = self._strategy.ask()
        return np.stack(self._asked)

    def tell(self, losses: Sequence[float]) -> None:
        """Learn from the candidates that `ask` returned last.

        Args:
            losses: of each; what is no number counts as worse than the worst.

        Raises:
            DivergedError: none of them is a number.
        """
        finite = [loss for loss in losses if np.isfinite(loss)]
        if not finite:
            raise DivergedError(
                f"the loss of all {len(losses)} candidates of a generation is no number; lower training.lr, with which "
                "the search begins"
            )
        worst = max(finite)
        self._strategy.tell(self._asked, [loss if np.isfinite(loss) else worst + 1.0 for loss in losses])


def import_cma() -> Any:
    """Import pycma.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import cma
    except ImportError as error:
        raise ConfigError("scope=derivative-free needs pycma: pip install 'rmlora[search]'") from error
    return cma
