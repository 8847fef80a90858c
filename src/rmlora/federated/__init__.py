"""Training by many clients that keep their examples, and a server that averages what they have learnt."""

from rmlora.federated.training import dry_run_federated, train_federated

__all__ = ["dry_run_federated", "train_federated"]
