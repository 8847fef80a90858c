"""The contenders: each one step on its own copy of a model, the frozen weights shared by all."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from rmlora.adapting import target_modules
from rmlora.attach import attach
from rmlora.bench.base_model import share
from rmlora.bench.clock import Spans
from rmlora.bench.settings import BenchSettings
from rmlora.config import LoraSettings
from rmlora.handle import Attached
from rmlora.methods import rm_lora
from rmlora.modeling import Loaded
from rmlora.step_hooks import ignore_steps, watch_steps

_LEARNING_RATE = 1e-5
"""So small that the model of the last round is, for all that costs time, the model of the first."""


@dataclass
class Contender:
    """One way to take a step.

    Attributes:
        name: among `CONTENDERS`.
        model: in training mode.
        settings: of the benchmark.
        optimizer: holds the adapter; None where nothing is trained.
        handle: where rmlora drives the adapter.
        spans: time inside rmlora's hooks around the optimizer's step.
    """

    name: str
    model: nn.Module
    settings: BenchSettings
    optimizer: Optimizer | None = None
    handle: Attached | None = None
    spans: Spans | None = None

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        """Forward, backward and, where something is trained, the optimizer's step; return the loss."""
        with torch.autocast(self.settings.device.split(":")[0], torch.bfloat16, enabled=self.settings.autocast):
            loss: Tensor = self.model(**batch).loss
        loss.backward()  # type: ignore[no-untyped-call]
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let only this contender's method watch optimizers, so that nobody pays for another's hooks."""
        if self.handle is None:
            yield
            return
        binding = self.handle._binding
        watch_steps(binding)
        try:
            yield
        finally:
            ignore_steps(binding)


def make_contender(name: str, base: nn.Module, settings: BenchSettings) -> Contender:
    """Make one contender on the weights of `base`.

    Args:
        name: among `CONTENDERS`.
        base: the frozen model; its modules stay as they are.
        settings: of the benchmark.
    """
    model = share(base)
    if name == "floor":
        model.get_input_embeddings().register_forward_hook(_require_gradient)
        return Contender(name, model, settings)
    adapted = _adapt(model, settings)
    handle, spans = None, None
    if name != "peft":
        method = rm_lora(settings.weight, settings.directions)
        handle = attach(adapted, method, fast=name == "rmlora")
        ignore_steps(handle._binding)
        spans = _watch_hooks(handle, settings.device)
    learning = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = AdamW(learning, lr=_LEARNING_RATE, fused=True)
    return Contender(name, adapted, settings, optimizer, handle, spans)


def adapted_modules(model: nn.Module) -> list[str]:
    """Name what gets an adapter: every linear layer inside the model's repeated blocks."""
    return target_modules(Loaded(model, None, (), (), ()), LoraSettings())


def _adapt(model: nn.Module, settings: BenchSettings) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    names = adapted_modules(model)
    transposed = type(model.get_submodule(names[0])).__name__ == "Conv1D"
    config = LoraConfig(
        r=settings.r, lora_alpha=2 * settings.r, target_modules=names, lora_dropout=0.0, fan_in_fan_out=transposed
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, to PEFT
        torch.manual_seed(0)
        adapted: nn.Module = get_peft_model(model, config)
    return adapted.train()


def _watch_hooks(handle: Attached, device: str) -> Spans:
    binding, spans = handle._binding, Spans(device)
    binding.before_step = spans.timed(binding.before_step)  # type: ignore[method-assign]
    binding.after_step = spans.timed(binding.after_step)  # type: ignore[method-assign]
    return spans


def _require_gradient(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.requires_grad_()
