"""Links that only add to gradients: kept directions alone, on every path; stacks that end where caches do."""

import pytest
import torch

import rmlora
from rmlora import stacking
from tests import toys, zoo

METHODS = {
    "unmasked": rmlora.r_lora(1e-2),
    "masked": rmlora.rm_lora(1e-2, 3),
    "independent": rmlora.rm_lora(1e-2, 3, sharing="independent"),
    "masked at the step": rmlora.chain(rmlora.AddOrthogonality(1e-2), rmlora.MaskDirections(3, act_in="step")),
    "frobenius": rmlora.chain(rmlora.AddOrthogonality(1e-2, norm="frobenius"), rmlora.MaskDirections(3)),
    "one module": rmlora.chain(rmlora.only("^0$", rmlora.AddOrthogonality(1e-2)), rmlora.MaskDirections(3)),
    "one module masked": rmlora.chain(rmlora.AddOrthogonality(1e-2), rmlora.only("^0$", rmlora.MaskDirections(3))),
    "two that add": rmlora.chain(rmlora.AddOrthogonality(1e-2), rmlora.AddOrthogonality(1e-3), rmlora.gm_lora(3)),
}
READS_GRADIENTS = rmlora.ClipByGlobalNorm(1e9)
"""A link that changes nothing, but takes every gradient as a whole."""


def train(method, fast=True, **changes):
    model = toys.make_model(dropout=0.0, **changes)
    handle = rmlora.attach(model, method, fast=fast)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=5e-2, momentum=0.9)
    toys.train(model, optimizer, steps=5)
    return toys.weights(model), handle


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("fast", [True, False])
def test_adding_to_kept_directions_is_adding_to_all_and_masking(method, fast):
    added, _ = train(method, fast)
    whole, _ = train(rmlora.chain(method, READS_GRADIENTS), fast)
    for name, value in whole.items():
        torch.testing.assert_close(added[name], value, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", ["embedding", "conv2d", "conv1d_of_transformers", "attention"])
def test_every_kind_of_layer_is_added_to(kind):
    found = []
    for method in (rmlora.rm_lora(1e-2, 2), rmlora.chain(rmlora.rm_lora(1e-2, 2), READS_GRADIENTS)):
        model = zoo.adapted(kind)
        rmlora.attach(model, method)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for step in range(3):
            zoo.compute_loss(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(toys.weights(model))
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-10, atol=1e-13)


def test_short_stacks_train_as_whole_ones_do(monkeypatch):
    lora = {"r": 4, "target_modules": ["0", "2", "4"], "modules_to_save": []}
    monkeypatch.setattr(toys, "HIDDEN", toys.D_IN)
    monkeypatch.setattr(toys, "CLASSES", toys.D_IN)
    whole, handle = train(rmlora.rm_lora(1e-2, 2), **lora)
    assert len(handle._binding.stacks) == 1
    monkeypatch.setattr(stacking, "_CPU_STACK_ENTRIES", 2 * 4 * toys.D_IN)
    parts, handle = train(rmlora.rm_lora(1e-2, 2), **lora)
    assert [len(stack) for stack in handle._binding.stacks] == [2, 1]
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-10, atol=1e-13)
