"""Adapting a model by forward passes alone: CMA-ES in a small space per block, projected into A and B."""

from rmlora.derivative_free.searching import Found, search
from rmlora.derivative_free.training import dry_run_search, train_search

__all__ = ["Found", "dry_run_search", "search", "train_search"]
