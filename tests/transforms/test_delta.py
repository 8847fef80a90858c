"""Delta-LoRA: the telescoped term against weights that are really edited; what is saved."""

import copy

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

import rmlora
from rmlora.errors import AttachError, MethodError
from tests import toys
from tests.reference import delta_lora as slow

STEPS, MICRO, LR, DECAY = 12, 2, 1e-2, 0.05


def micro_batches(step):
    return [toys.batch(MICRO * step + micro) for micro in range(MICRO)]


def train(model, steps=range(STEPS)):
    optimizer = toys.make_optimizer(model, lr=LR, weight_decay=DECAY)
    for step in steps:
        for x, y in micro_batches(step):
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("begin", ["lora", "trained"])
@pytest.mark.parametrize(("strength", "start_step"), [(0.5, 0), (2.0, 4), (0.7, STEPS)])
def test_factors_and_total_weights_equal_the_slow_transcription(strength, start_step, begin):
    model = toys.make_model(dropout=0.0)
    if begin == "trained":
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    handle = rmlora.attach(model, rmlora.delta_lora(strength, start_step=start_step))
    layers = [
        slow.SlowLayer(pair.layer.base_layer.weight, pair.layer.base_layer.bias, pair.A, pair.B, pair.scale)
        for pair in handle.pairs
    ]
    head = copy.deepcopy(model.base_model.model[4].modules_to_save["default"])
    slow.train(layers, head, [micro_batches(step) for step in range(STEPS)], LR, DECAY, strength, start_step)
    base = toys.weights(model.base_model.model[0].base_layer)
    train(model)
    for pair, layer in zip(handle.pairs, layers, strict=True):
        torch.testing.assert_close(pair.A, layer.A, rtol=0, atol=1e-12)
        torch.testing.assert_close(pair.B, layer.B, rtol=0, atol=1e-12)
        A, B = handle.fold()[pair.name]
        assert len(A) == 2 * pair.r
        total = pair.layer.base_layer.weight + pair.scale * B @ A
        torch.testing.assert_close(total, layer.total(), rtol=0, atol=1e-12)
    x, _ = toys.batch(77)
    slowly = head(torch.tanh(layers[1](torch.tanh(layers[0](x)))))
    torch.testing.assert_close(model(x), slowly, rtol=0, atol=1e-12)
    toys.assert_equal_weights(base, toys.weights(model.base_model.model[0].base_layer))


def test_from_step_zero_it_is_a_larger_scale_forward_with_the_gradients_of_lora():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.delta_lora(0.5))
    train(model, range(3))
    layer = handle.pairs[0].layer
    A, B, x = (t.detach().clone().requires_grad_() for t in (handle.pairs[0].A, handle.pairs[0].B, toys.batch(5)[0]))
    y = layer(x)
    wider = layer.base_layer(x) + 1.5 * 2.0 * x @ A.T @ B.T
    torch.testing.assert_close(y, wider, rtol=0, atol=1e-12)
    (dx,) = torch.autograd.grad(wider.square().sum() / 2, x)
    plain = layer.base_layer(x) + 2.0 * x @ A.T @ B.T
    dA, dB = torch.autograd.grad(plain, (A, B), grad_outputs=y.detach())
    found = torch.autograd.grad(y.square().sum() / 2, (*handle.pairs[0].parameters, x))
    for got, wanted in zip(found, (dA, dB, dx), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_the_file_has_twice_the_rank_and_the_two_terms_the_paper_adds(tmp_path):
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.delta_lora(0.5, start_step=2))
    train(model, range(2))
    snapshot = [(pair.A.detach().clone(), pair.B.detach().clone()) for pair in handle.pairs]
    train(model, range(2, 5))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    for pair, (A_K, B_K) in zip(handle.pairs, snapshot, strict=True):
        A, B = (saved[f"base_model.model.{pair.name}.lora_{side}.weight"] for side in "AB")
        assert torch.equal(A, torch.cat([pair.A, A_K]))
        torch.testing.assert_close(B, torch.cat([1.5 * pair.B, -0.5 * B_K], dim=1), rtol=0, atol=1e-15)
    reloaded = PeftModel.from_pretrained(toys.make_base(), tmp_path, autocast_adapter_dtype=False)
    torch.testing.assert_close(toys.outputs(reloaded), toys.outputs(model), rtol=0, atol=1e-12)


def test_beside_gates_both_fold_exactly():
    for links in ((rmlora.sora(1e-3), rmlora.delta_lora(0.5)), (rmlora.delta_lora(0.5), rmlora.sora(1e-3))):
        model = toys.make_model(dropout=0.0)
        handle = rmlora.attach(model, rmlora.chain(*links))
        train(model, range(4))
        live = toys.outputs(model)
        assert len(handle.fold()["0"][0]) == 24
        torch.testing.assert_close(toys.outputs(model.merge_and_unload()), live, rtol=0, atol=1e-12)


def test_a_pair_without_gradient_at_the_first_step_takes_its_snapshot_later():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.delta_lora(0.5))
    nn.init.ones_(handle.pairs[0].parameters[1])
    started = handle.pairs[0].B @ handle.pairs[0].A
    optimizer = toys.make_optimizer(model)
    toys.compute_gradients(model, 0)
    for parameter in handle.pairs[0].parameters:
        parameter.grad = None
    optimizer.step()
    optimizer.zero_grad()
    A, B = handle.fold()["0"]
    torch.testing.assert_close(B @ A, started, rtol=0, atol=1e-12)
    toys.train(model, optimizer, steps=3, start=1)
    A, B = handle.fold()["0"]
    now = handle.pairs[0].B @ handle.pairs[0].A
    torch.testing.assert_close(B @ A, now + 0.5 * (now - started), rtol=0, atol=1e-12)


def test_detaching_would_lose_directions_and_is_refused_before_anything_changes():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.delta_lora())
    train(model, range(2))
    with pytest.raises(AttachError, match="has 16 directions with its blocks and live factors for 8"):
        handle.detach()
    assert handle.is_attached


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"strength": -0.5}, "strength=-0.5; it must be a number >= 0"),
        ({"strength": float("nan")}, "strength=nan; it must be a number >= 0"),
        ({"strength": float("inf")}, "strength=inf; it must be a number >= 0"),
        ({"start_step": -1}, "start_step=-1; it counts optimizer steps"),
    ],
)
def test_values_that_make_no_sense_are_refused(knobs, message):
    with pytest.raises(MethodError, match=message):
        rmlora.delta_lora(**knobs)
