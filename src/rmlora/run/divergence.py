"""Stopping a run at the step in which a number is lost, and naming the module that lost it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from rmlora.errors import DivergedError
from rmlora.run.folder import RunFolder, checkpoint_step

_PREFIXES = ("module.", "base_model.model.")


class StopAtNan(TrainerCallback):  # type: ignore[misc]
    """Refuse to save a checkpoint of weights that are no longer numbers: the last good one stays.

    The steps before are looked at by `check_step`; this sees what the last step of an epoch did.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Look at every trained weight, before the epoch is evaluated and saved."""
        name = first_broken_weight(model)
        if name is not None:
            where = f"after step {state.global_step} of {state.max_steps}"
            raise DivergedError(f"{where} the weight of {name} is no longer a number: {remedy(self.folder)}")


def check_step(
    loss: Tensor,
    model: nn.Module,
    with_gradients: bool,
    where: str,
    remedy: Callable[[], str],
    forward: Callable[[], str | None] = lambda: None,
) -> None:
    """Stop where the loss, or a gradient of a loss that is still a number, is nan or infinite.

    Args:
        loss: of one forward pass, with its backward behind it.
        model: its trained parameters hold their gradients; nothing is changed.
        with_gradients: whether gradients are to be looked at: all are there, and none is scaled.
        where: names the step.
        remedy: asked what to do, if it comes to that.
        forward: asked which output was lost first, if no weight was.

    Raises:
        DivergedError: names the step and the first weight, or else the first gradient, that went.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> check_step(model(torch.ones(2)).sum(), model, True, "at step 1", lambda: "")
    """
    loss = loss.detach()
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None] if with_gradients else []
    size = loss.abs().float()
    if gradients:
        size = size + nn.utils.get_total_norm(gradients).to(size)
    if torch.isfinite(size):
        return
    lost = first_broken_weight(model)
    if lost is not None:
        raise DivergedError(f"loss is {float(loss)} {where}: first the weight of {lost} was lost; {remedy()}")
    if not torch.isfinite(loss):
        output = forward()
        lost = f"output of {output}" if output else f"gradient of {first_broken_gradient(model)}"
        raise DivergedError(
            f"loss is {float(loss)} {where}: all weights are finite, first the {lost} was lost; {remedy()}"
        )
    lost = first_broken_gradient(model)
    if lost is not None:
        raise DivergedError(f"the gradient of {lost} is the first that is no longer a number {where}; {remedy()}")


def first_broken_weight(model: nn.Module) -> str | None:
    """Name the first trained parameter, in the order of the model, that holds nan or infinity; None if all are well.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> with torch.no_grad():
        ...     _ = model[1].weight.fill_(float("nan"))
        >>> first_broken_weight(model)
        '1.weight'
    """
    return _first_broken({n: p.detach() for n, p in model.named_parameters() if p.requires_grad})


def first_broken_gradient(model: nn.Module) -> str | None:
    """Name the gradient that backward, which goes from the last module to the first, lost first."""
    parameters = reversed(list(model.named_parameters()))
    return _first_broken({n: p.grad for n, p in parameters if p.requires_grad and p.grad is not None})


def first_broken_output(model: nn.Module, compute: Callable[[], Any]) -> str | None:
    """Name the first module of a forward pass that returns nan or infinity.

    Args:
        model: whose modules are watched.
        compute: the pass; run once more, without gradients. The global generators are left as they are.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, outputs: Any) -> None:
            first = outputs[0] if isinstance(outputs, tuple) and outputs else outputs
            if isinstance(first, Tensor) and first.is_floating_point() and not torch.isfinite(first).all():
                found.append(name)

        return look

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad(), torch.random.fork_rng():
            compute()
    finally:
        for hook in hooks:
            hook.remove()
    return _short(found[0]) if found else None


def remedy(folder: RunFolder) -> str:
    """Say what to do about a run that diverged, and where its last good checkpoint is."""
    kept = folder.checkpoint()
    lower = "lower training.lr (or use training.precision=fp32)"
    if kept is None:
        return f"{lower}, and start again with --overwrite"
    return (
        f"{lower}, and start again with another output; the last good checkpoint, of step {checkpoint_step(kept)}, "
        f'is kept in "{kept}"'
    )


def _first_broken(tensors: Mapping[str, Tensor]) -> str | None:
    return next((_short(name) for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)


def _short(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
