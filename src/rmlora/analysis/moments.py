"""Second moments of the inputs of a model's layers: which directions of its input a layer really sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rmlora.errors import AdapterError, nearest


@torch.no_grad()
def input_moments(model: nn.Module, names: Iterable[str], batches: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Average x x^T over the inputs x of each layer while the model runs over some batches.

    Args:
        model: run in evaluation mode, and left in the mode it was in. Use the one whose activations count: the
            pretrained one, or the fully fine-tuned one.
        names: modules of `model`, by their full names.
        batches: keyword arguments of the model's forward. Positions with attention_mask 0 do not count.

    Returns:
        By name, `(d_in, d_in)` in float64 on the CPU.

    Raises:
        AdapterError: the model has no such module, or no input came by.

    Example:
        >>> layer = nn.Sequential(nn.Linear(2, 1))
        >>> input_moments(layer, ["0"], [{"input": torch.tensor([[1.0, 0.0], [0.0, 3.0]])}])["0"]
        tensor([[0.5000, 0.0000],
                [0.0000, 4.5000]], dtype=torch.float64)
    """
    modules = dict(model.named_modules())
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    mask: Tensor | None = None

    def watch(name: str) -> Any:
        def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            X = inputs[0].detach()
            kept = X[mask.bool()] if mask is not None and mask.shape == X.shape[:-1] else X.flatten(0, -2)
            rows = kept.to("cpu", torch.float64)
            sums[name] = sums.get(name, torch.zeros(1, dtype=torch.float64)) + rows.mT @ rows
            counts[name] = counts.get(name, 0) + len(rows)

        return see

    wanted = list(names)
    for name in wanted:
        if name not in modules:
            raise AdapterError(f"the model has no module {name}{nearest(name, list(modules))}")
    hooks = [modules[name].register_forward_pre_hook(watch(name)) for name in wanted]
    was_training = model.training
    try:
        model.eval()
        for batch in batches:
            mask = batch.get("attention_mask")
            model(**batch)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    unseen = [name for name in wanted if not counts.get(name)]
    if unseen:
        raise AdapterError(f"no input of {unseen[0]} was seen; give at least one batch that runs it")
    return {name: sums[name] / counts[name] for name in wanted}
