"""Adapting the classification layer alone, on features of the frozen backbone that are computed once."""

from rmlora.heads.training import dry_run_head, train_head

__all__ = ["dry_run_head", "train_head"]
