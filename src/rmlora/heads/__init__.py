"""Adapting the classification layer alone, on features of the frozen backbone that are computed once."""

from rmlora.heads.training import train_head

__all__ = ["train_head"]
