"""BiLoRA: against the slow transcription; who moves when; where training begins."""

import copy

import pytest
import torch
from torch import nn

import rmlora
from rmlora.errors import AttachError, MethodError
from tests import toys
from tests.reference import bilora as slow

STEPS, MICRO, LR, DECAY = 13, 2, 1e-2, 0.05


def attach(model, method, **given):
    return rmlora.attach(model, method, provides=method.needs, **given)


def values_of(handle):
    """Every module's values, by name."""
    binding = handle._binding
    return {
        pair.name: tensors["0/values"][row].detach().clone()
        for stack, tensors in zip(binding.stacks, binding.state, strict=True)
        for row, pair in enumerate(stack.pairs)
    }


def micro_batches(step):
    return [toys.batch(MICRO * step + micro) for micro in range(MICRO)]


@pytest.mark.parametrize("weight", [0.0, 0.05])
@pytest.mark.parametrize("every", [2, 3])
def test_it_equals_the_slow_transcription(every, weight):
    model = toys.make_model(dropout=0.0)
    handle = attach(model, rmlora.bilora(weight, every=every))
    layers = [
        slow.SlowLayer(pair.layer.base_layer.weight, pair.layer.base_layer.bias, pair.A, pair.B, pair.scale)
        for pair in handle.pairs
    ]
    head = copy.deepcopy(model.base_model.model[4].modules_to_save["default"])
    slow.train(layers, head, map(micro_batches, range(STEPS)), LR, DECAY, weight, every)
    optimizer = toys.make_optimizer(model, lr=LR, weight_decay=DECAY)
    for step in range(STEPS):
        for x, y in micro_batches(step):
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    for pair, layer in zip(handle.pairs, layers, strict=True):
        torch.testing.assert_close(values_of(handle)[pair.name], layer.values.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(pair.A, layer.A, rtol=0, atol=1e-12)
        torch.testing.assert_close(pair.B, layer.B, rtol=0, atol=1e-12)


def test_values_and_factors_move_in_turns_and_moments_stand_still_with_them():
    model = toys.make_model()
    handle = attach(model, rmlora.bilora(every=3))
    optimizer = toys.make_optimizer(model)
    for step in range(9):
        pair = handle.pairs[0]
        A, values = pair.A.clone(), values_of(handle)["0"]
        mean = optimizer.state.get(pair.parameters[0], {}).get("exp_avg", torch.zeros_like(A)).clone()
        assert handle.kept()["0"] == (([], []) if step % 3 == 2 else (list(range(8)), list(range(8))))
        toys.train(model, optimizer, steps=1, start=step)
        is_upper = step % 3 == 2
        assert torch.equal(pair.A, A) == is_upper
        assert torch.equal(optimizer.state[pair.parameters[0]]["exp_avg"], mean) == is_upper
        assert torch.equal(values_of(handle)["0"], values) != is_upper


def test_training_begins_as_the_base_with_rows_and_columns_of_unit_length():
    base, model = toys.make_base(), toys.make_model(r=64)
    handle = attach(model, rmlora.bilora())
    x, _ = toys.batch(0)
    assert torch.equal(model.eval()(x), base(x))
    for pair in handle.pairs:
        assert pair.A.square().sum(dim=1).mean().item() == pytest.approx(1.0, abs=0.2)
        assert pair.B.square().sum(dim=0).mean().item() == pytest.approx(1.0, abs=0.2)
    drawn = [attach(toys.make_model(), rmlora.bilora(), seed=seed).pairs for seed in (0, 0, 1)]
    assert torch.equal(drawn[0][0].A, drawn[1][0].A)
    assert not torch.equal(drawn[0][0].A, drawn[2][0].A)
    assert not torch.equal(drawn[0][1].A[:, :12], drawn[0][0].A)


def test_without_moments_by_direction_factors_stand_still_all_the_same():
    model = toys.make_model(dtype=torch.float32)
    handle = attach(model, rmlora.bilora())
    optimizer = torch.optim.Adafactor([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    toys.train(model, optimizer, steps=1, dtype=torch.float32)
    A = handle.pairs[0].A.clone()
    toys.train(model, optimizer, steps=1, start=1, dtype=torch.float32)
    assert torch.equal(handle.pairs[0].A, A)


def test_an_adapter_that_is_trained_already_is_refused():
    model = toys.make_model()
    with torch.no_grad():
        model.base_model.model[2].lora_B["default"].weight[0, 0] = 1.0
    with pytest.raises(MethodError, match="2: B is not zero"):
        attach(model, rmlora.bilora())


def test_attaching_alone_is_refused():
    with pytest.raises(AttachError, match="needs two parts of the training set"):
        rmlora.attach(toys.make_model(), rmlora.bilora())


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"weight": -1.0}, "weight=-1.0; it must be finite and >= 0"),
        ({"every": 1}, "every=1; one optimizer step"),
        ({"share": 1.0}, "share=1.0; it is the share"),
    ],
)
def test_values_that_make_no_sense_are_refused(knobs, message):
    with pytest.raises(MethodError, match=message):
        rmlora.bilora(**knobs)
