"""The bare loop is no more than it seems: the same bits as the plainest loop, and nothing searched or drawn twice."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import rmlora.binding
from rmlora.config import RunConfig
from rmlora.draws import draw_directions
from rmlora.heads import training
from rmlora.heads.fitting import batch_order
from rmlora.heads.plan import HeadRun, prepare

KNOBS: dict[str, dict[str, Any]] = {"full": {}, "lora": {}, "sora": {}, "rm-lora": {"weight": 1e-2, "directions": 1}}


def plainest(run: HeadRun) -> list[torch.Tensor]:
    """Train as anybody would write it, rmlora left to find the optimizer itself; return the weights."""
    torch.manual_seed(run.config.training.seed)
    model, told = run.draw().model, run.config.training
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=told.lr, weight_decay=told.weight_decay)
    labels = torch.tensor(run.data.train.labels)
    epochs = list(batch_order(len(labels), told.batch_size, told.epochs, told.seed))
    steps = sum(map(len, epochs))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (steps - step) / max(1, steps)))
    model.train()
    for indices in (batch for epoch in epochs for batch in epoch):
        nn.functional.cross_entropy(model(run.features.train[indices]), labels[indices]).backward()
        nn.utils.clip_grad_norm_(parameters, told.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("method", KNOBS)
def test_weights_are_bit_for_bit_those_of_the_plainest_loop(method: str, configure: Callable[..., RunConfig]) -> None:
    run = prepare(configure(method=method, method_args=KNOBS[method], head={"frozen": "random"}))
    layer = run.draw()
    training._train(run, layer, Console(quiet=True))
    expected = plainest(run)
    found = [p.detach() for p in layer.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(found[-1], list(run.draw().model.parameters())[-1])


def test_masks_are_drawn_once_a_step_and_no_optimizer_is_searched_for(
    configure: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare(configure(method="rm-lora", method_args=KNOBS["rm-lora"]))
    layer, draws = run.draw(), []

    def counted(*args: Any) -> torch.Tensor:
        draws.append(args)
        return draw_directions(*args)

    def search(*_: Any) -> list[Any]:
        raise AssertionError("searched")

    module = sys.modules["rmlora.transforms.mask_directions"]  # the package has the function of that name
    monkeypatch.setattr(module, "draw_directions", counted)
    monkeypatch.setattr(rmlora.binding, "live_optimizers", search)
    rows, _ = training._train(run, layer, Console(quiet=True))
    assert len(draws) == rows[-1]["step"] == 10
    assert 0 < rows[-1]["masked_share"] < 1
