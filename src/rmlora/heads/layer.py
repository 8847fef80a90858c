"""The classification layer alone: a frozen weight with an adapter on it, or the weight itself in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rmlora.attach import attach
from rmlora.config import RunConfig
from rmlora.errors import ConfigError
from rmlora.handle import Attached
from rmlora.methods import METHODS

NAME = "classifier"
"""The layer's name, which seeds its masks: the same as in a transformers model."""

RANDOM_DEVIATION = 0.02
"""Of the entries of a random W0: what transformers draws a new classifier with."""


class Head(nn.Module):
    """A linear layer under the name it has in a whole model."""

    def __init__(self, d_in: int, outputs: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(d_in, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Turn features `(n, d_in)` into outputs `(n, outputs)`."""
        return self.classifier(x)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Layer:
    """A classification layer ready to be trained.

    Attributes:
        model: a PEFT model with the method attached, or the bare layer of a method without adapter.
        W0: `(outputs, d_in)` what the layer started from.
        handle: what `attach` returned; None without an adapter.
    """

    model: Any
    W0: Tensor
    handle: Attached | None

    def to(self, device: torch.device) -> Layer:
        """Move it to a device; the model is moved in place."""
        return Layer(self.model.to(device), self.W0.to(device), self.handle)

    @property
    def linear(self) -> nn.Linear:
        """The linear layer that holds the bias and, without an adapter, all that was learnt."""
        layer = self.model.base_model.model.classifier.get_base_layer() if self.handle else self.model.classifier
        return layer  # type: ignore[no-any-return]

    def bind(self, optimizer: torch.optim.Optimizer) -> None:
        """Say what trains it, which spares the method a search through all objects of the process."""
        if self.handle is not None:
            self.handle.bind(optimizer)

    @torch.no_grad()
    def update(self) -> tuple[Tensor, Tensor, float]:
        """Return what was learnt as factors A `(r, d_in)`, B `(outputs, r)` and s, with dW = s B A.

        Without an adapter A is the identity. What the forward pass adds, such as a gate, is folded in.
        """
        if self.handle is None:
            dW = self.model.classifier.weight.detach() - self.W0
            return torch.eye(dW.shape[1], device=dW.device), dW, 1.0
        (A, B), pair = next(iter(self.handle.fold().values())), self.handle.pairs[0]
        return A.detach(), B.detach(), pair.scale

    @torch.no_grad()
    def weight(self) -> Tensor:
        """Return W0 + dW, `(outputs, d_in)`."""
        A, B, scale = self.update()
        return self.W0 + scale * (B @ A)


def make_layer(config: RunConfig, d_in: int, outputs: int) -> Layer:
    """Make the layer of a run, drawing from the global torch generator: seed it before.

    W0 is frozen, at zero or at random (`head.frozen`); its bias is trained. With the same seed every method
    starts from the same W0, and from the same A where r is the same.

    Args:
        config: complete.
        d_in: features.
        outputs: classes, or 1 for a regression.

    Raises:
        MethodError: the method does not suit the layer, such as more directions than r.
        ConfigError: PEFT refuses the settings.
    """
    from peft import LoraConfig, get_peft_model

    head = Head(d_in, outputs)
    nn.init.zeros_(head.classifier.bias)
    nn.init.normal_(head.classifier.weight, std=RANDOM_DEVIATION)
    if config.head.frozen == "zero":
        nn.init.zeros_(head.classifier.weight)
    W0 = head.classifier.weight.detach().clone()
    method = METHODS[config.method]
    transform = method.build(**config.method_args)
    if method.trains_base:
        return Layer(head, W0, None)
    adapter = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.lora_alpha,
        lora_dropout=config.lora.lora_dropout,
        use_rslora=config.lora.use_rslora,
        init_lora_weights=config.lora.init_lora_weights,
        target_modules=[NAME],
        bias="lora_only",
    )
    try:
        model = get_peft_model(head, adapter)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"PEFT refuses the lora settings: {' '.join(str(error).split())[:300]}") from error
    return Layer(model, W0, attach(model, transform, seed=config.training.seed, fast=config.training.fast))
