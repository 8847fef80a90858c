"""Models that are no transformers: which way of computing instances is taken for them, and that it is right."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import rmlora

N = 5
SHARED = "shared up to base_model.model"


class Coupled(nn.Module):
    """Blocks behind which every row is given the sum of all: with stacked rows that is quietly another number."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x + x.sum()


class Unknown(nn.Module):
    """Blocks that are given a tensor of unknown meaning, whose first dimension is the batch's."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Twice(), Twice()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, weights=2 * x)
        return x


class Known(Unknown):
    """The same, except that it is the model's input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = 2 * x
        for block in self.blocks:
            x = block(x, weights=weights)
        return x


class Twice(nn.Module):
    """A block with a second input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(x)) + weights


def plain_model(base: nn.Module, targets: list[str]) -> Any:
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=3, target_modules=targets, init_lora_weights=False))
    rmlora.attach(model, rmlora.DropFeatures(p=0.3))
    return model.eval()


def test_a_block_with_an_input_of_unknown_meaning_is_called_for_each_instance() -> None:
    model, x = plain_model(Known(), ["layer"]), torch.randn(3, 6)
    own = torch.stack(one_by_one_tensor(model, x, N)).mean(0)
    ensemble = rmlora.Ensemble(model, N)
    torch.testing.assert_close(ensemble(x), own, rtol=1e-5, atol=1e-6)
    assert ensemble.path.startswith(f"{SHARED}.blocks.0, then block by block: a block is given weights (2, 6)")


def test_blocks_that_pass_more_than_one_thing_on_are_stacked_from_the_start() -> None:
    model, x = plain_model(Unknown(), ["layer"]), torch.randn(3, 6)
    own = torch.stack(one_by_one_tensor(model, x, N)).mean(0)
    ensemble = rmlora.Ensemble(model, N)
    torch.testing.assert_close(ensemble(x), own, rtol=1e-5, atol=1e-6)
    assert ensemble.path.startswith("the whole batch stacked: a block is given more than one input")


def test_a_cheap_way_that_gives_other_outputs_is_not_taken() -> None:
    model, x = plain_model(Coupled(), ["blocks.0"]), torch.randn(3, 6)
    own = torch.stack(one_by_one_tensor(model, x, N)).mean(0)
    ensemble = rmlora.Ensemble(model, N)
    torch.testing.assert_close(ensemble(x), own, rtol=1e-5, atol=1e-6)
    assert ensemble.path == "one pass per instance: cheaper ways gave other outputs"


def test_a_sequential_shares_too() -> None:
    base = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    model, x = plain_model(base, ["2"]), torch.randn(3, 6)
    ensemble = rmlora.Ensemble(model, N)
    torch.testing.assert_close(ensemble(x), torch.stack(one_by_one_tensor(model, x, N)).mean(0), rtol=1e-5, atol=1e-6)
    assert ensemble.path == "shared up to base_model.model.2"


@torch.no_grad()
def one_by_one_tensor(model: Any, x: torch.Tensor, n: int) -> list[torch.Tensor]:
    live = rmlora.attached(model)[0]._binding
    live.sampling = True
    outputs = []
    for live.instance in range(n):
        outputs.append(model(x))
    live.instance, live.sampling = 0, False
    return outputs
