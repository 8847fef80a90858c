"""Runs with scope=mixture: trained adapters put together by gates, by merging, or by taking the best."""

from rmlora.mixture.settings import complete_mixture
from rmlora.mixture.training import dry_run_mixture, train_mixture

__all__ = ["complete_mixture", "dry_run_mixture", "train_mixture"]
