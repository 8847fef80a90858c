"""Class-incremental learning: the classes of one data set, learned a part at a time."""

from rmlora.continual.running import dry_run_continual, train_continual

__all__ = ["dry_run_continual", "train_continual"]
