"""What a causal-lm run cannot do, found out before it begins."""

from __future__ import annotations

from typing import Any

from rmlora.config import RunConfig
from rmlora.errors import ConfigError
from rmlora.tasks.text_overlap import check_overlap_metrics


def check_completion_task(config: RunConfig, model: Any) -> None:
    """Refuse what would stop a causal-lm run after it has begun.

    Args:
        config: of the run.
        model: says how many positions it has, if it does.

    Raises:
        ConfigError: there are fewer positions than tokens, or a metric's library is missing.
    """
    check_overlap_metrics(config.generation.metrics)
    limit = positions(model)
    if limit is None:
        return
    if config.data.max_length > limit:
        raise ConfigError(
            f"data.max_length={config.data.max_length} does not fit into the {limit} positions of the model"
        )
    count = config.generation.max_new_tokens
    if config.generation.examples and count >= limit:
        raise ConfigError(f"generation.max_new_tokens={count} does not fit into the {limit} positions of the model")


def positions(model: Any) -> int | None:
    """Return how many positions a model has; None if it does not say."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None
