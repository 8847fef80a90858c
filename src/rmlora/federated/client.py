"""One client in one round: from the tensors it is sent to those it sends back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn

from rmlora.attach import attach
from rmlora.errors import ConfigError, DivergedError
from rmlora.federated.averaging import Update
from rmlora.federated.site import Site
from rmlora.federated.turns import client_seed, parts_of_round, rate_of_round
from rmlora.heads.fitting import batch_order
from rmlora.run.divergence import check_step, first_broken_weight
from rmlora.run.trainer import collate


def train_client(site: Site, number: int, client: int, sent: Mapping[str, Tensor]) -> Update:
    """Train what a round trains on the examples of one client.

    A client remembers nothing: its optimizer and its method begin anew, and all it draws is a function of seed, round
    and client. So it sends the same bits whoever runs it, in whatever order, on the same kind of machine.

    Args:
        site: its model is changed, its generators are not.
        number: of the round, from 1.
        client: its number, from 0.
        sent: tensors that are not as they were at the start.

    Raises:
        ConfigError: there is no such client, or a tensor that was sent is none of the model's.
        DivergedError: the loss or a weight is no longer a number.
    """
    config = site.config
    told, training = config.federated, config.training
    if not 0 <= client < len(site.deal):
        raise ConfigError(f"there is no client {client}: the examples are dealt to {len(site.deal)}, from 0")
    _check_sent(site, sent)
    seed = client_seed(training.seed, number, client)
    names = site.names(parts_of_round(told, number))
    site.write(sent)
    method = site.method.build(**config.method_args)
    with _learning(site, names) as learning, torch.random.fork_rng():
        torch.manual_seed(seed)
        optimizer = torch.optim.AdamW(
            learning,
            lr=rate_of_round(training, number, told.rounds),
            weight_decay=training.weight_decay,
            fused=training.optimizer == "adamw_torch_fused",
        )
        with attach(site.model, method, optimizer=optimizer, seed=seed, fast=training.fast):
            steps, loss = _fit(site, optimizer, learning, site.deal[client], seed)
        lost = first_broken_weight(site.model)
    if lost is not None:
        raise DivergedError(f"the weight of {lost} is no longer a number; lower training.lr")
    return Update(client, len(site.deal[client]), steps, loss, site.read(names))


def _check_sent(site: Site, sent: Mapping[str, Tensor]) -> None:
    for name, tensor in sent.items():
        if name not in site.initial or site.initial[name].shape != tensor.shape:
            raise ConfigError(f"the server sent {name} {tuple(tensor.shape)}, which this client's model does not have")


@contextmanager
def _learning(site: Site, names: list[str]) -> Iterator[list[nn.Parameter]]:
    """Let only some of the trained tensors have gradients."""
    trained = site.trained
    for name, parameter in trained.items():
        parameter.requires_grad_(name in names)
    try:
        yield [trained[name] for name in names]
    finally:
        for parameter in trained.values():
            parameter.requires_grad_(True)
            parameter.grad = None


def _fit(
    site: Site, optimizer: torch.optim.Optimizer, learning: list[nn.Parameter], own: list[int], seed: int
) -> tuple[int, float]:
    """Take the steps of a round; return their number and the mean loss over the examples seen."""
    told, training = site.config.federated, site.config.training
    pad, device = collate(site.config.task, site.processor), site.model.device
    total = seen = 0.0
    steps = 0
    site.model.train()
    for indices in _batches(len(own), training.batch_size, told.local_epochs, told.local_steps, seed):
        batch = pad([site.encoded["train"][own[i]] for i in indices])
        loss = site.model(**{name: value.to(device) for name, value in batch.items()}).loss
        loss.backward()
        check_step(loss, site.model, True, f"at step {steps + 1} of its round", lambda: "lower training.lr")
        if training.max_grad_norm:
            nn.utils.clip_grad_norm_(learning, training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item() * len(indices)
        seen += len(indices)
        steps += 1
    site.model.eval()
    return steps, total / seen


def _batches(examples: int, size: int, epochs: int, steps: int | None, seed: int) -> Iterator[list[int]]:
    """Yield positions: so many passes in orders drawn from the seed, or as many batches of them as there are steps."""
    if steps is not None:
        epochs = -(-steps // -(-examples // size))
    every = (batch.tolist() for epoch in batch_order(examples, size, epochs, seed) for batch in epoch)
    return islice(every, steps)
