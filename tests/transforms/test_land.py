"""PoLAR: against the slow transcription, its start, its middle, loss scales, bad input."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import rmlora
from rmlora.errors import MethodError
from rmlora.pairs import Factors
from rmlora.transforms.land_factors import land_factors
from tests import toys
from tests.reference import polar as slow

FIELDS = {"landing": slow.landing_field, "euclidean": slow.euclidean_field}
STEPS = 8
ADAM = {"lr": 1e-2, "weight_decay": 0.05, "eps": 1e-5}  # a larger eps: Adam divides rounding by tiny gradients


def middles(handle):
    """Every module's S, by name."""
    binding = handle._binding
    return {
        pair.name: tensors["0/S"].detach()[row]
        for stack, tensors in zip(binding.stacks, binding.state, strict=True)
        for row, pair in enumerate(stack.pairs)
    }


def residual(X):
    """How far from orthonormal the columns are: the largest entry of |X^T X - I|."""
    return (X.mT @ X - torch.eye(X.shape[-1], dtype=X.dtype)).abs().max().item()


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_factors_and_middle_equal_the_slow_transcription(field, weight):
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.polar(weight, field))
    started = middles(handle)
    layers = [
        slow.SlowLayer(p.layer.base_layer.weight, p.layer.base_layer.bias, p.A, p.B, p.scale, started[p.name])
        for p in handle.pairs
    ]
    head = copy.deepcopy(model.base_model.model[4].modules_to_save["default"])
    slow.train(layers, head, [toys.batch(i) for i in range(STEPS)], weight=weight, field=FIELDS[field], **ADAM)
    trained = [p for p in model.parameters() if p.requires_grad]
    toys.train(model, torch.optim.AdamW(trained, **ADAM), steps=STEPS)
    for pair, layer in zip(handle.pairs, layers, strict=True):
        torch.testing.assert_close(pair.A, layer.A, rtol=0, atol=1e-12)
        torch.testing.assert_close(pair.B, layer.B, rtol=0, atol=1e-12)
        torch.testing.assert_close(middles(handle)[pair.name], layer.S, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_begins_orthonormal_with_the_frozen_models_outputs(dtype):
    model = toys.make_model(dtype=dtype)
    plain = toys.outputs(model, dtype)
    handle = rmlora.attach(model, rmlora.polar())
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    for pair in handle.pairs:
        assert residual(pair.A.mT.double()) <= tolerance
        assert residual(pair.B.double()) <= tolerance
    assert torch.equal(toys.outputs(model, dtype), plain)
    first, second = (pair.B.double() for pair in handle.pairs)
    assert not torch.allclose(first, second)


def test_the_start_is_a_function_of_seed_and_module():
    ends = [rmlora.attach(toys.make_model(seed=i), rmlora.polar(), seed=s).pairs for i, s in ((0, 0), (5, 0), (0, 1))]
    assert torch.equal(ends[0][0].A, ends[1][0].A)
    assert not torch.equal(ends[0][0].A, ends[2][0].A)


def test_the_landing_field_turns_without_changing_the_gram_matrix_to_first_order():
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(2, *shape, generator=generator, dtype=torch.float64) for shape in ((3, 7), (5, 3)))
    turned = land_factors(Factors(A.roll(1, 0), B.roll(1, 0)), Factors(A, B), 0.0)
    for X, field in ((A.mT, turned.A.mT), (B, turned.B)):
        change = X.mT @ field + field.mT @ X
        assert change.abs().max() < 1e-12


def test_the_pull_brings_factors_back_that_have_left():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.polar(1.0))
    with torch.no_grad():
        for pair in handle.pairs:
            pair.parameters[0].mul_(1.2)
    before = max(residual(pair.A.mT) for pair in handle.pairs)
    toys.train(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), steps=40)
    after = max(residual(pair.A.mT) for pair in handle.pairs)
    assert after < 0.1 * before


@pytest.mark.parametrize("method", [rmlora.polar, rmlora.stella])
@pytest.mark.parametrize("fused", [False, True])
def test_it_moves_the_same_under_a_loss_scale(method, fused):
    ends = []
    for scale in (None, 2.0**12):
        model = toys.make_model(dtype=torch.float32, dropout=0.0)
        handle = rmlora.attach(model, method())
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2, eps=1e-5, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for step in range(4):
            x, y = toys.batch(step, torch.float32)
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        ends.append(toys.weights(model) | middles(handle))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=2e-5)


def test_a_pair_without_gradient_stands_still():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.polar())
    optimizer = toys.make_optimizer(model)
    toys.train(model, optimizer, steps=2)
    before = {name: S.clone() for name, S in middles(handle).items()}
    toys.compute_gradients(model, 2)
    for parameter in handle.pairs[0].parameters:
        parameter.grad = None
    optimizer.step()
    assert torch.equal(middles(handle)["0"], before["0"])
    assert not torch.equal(middles(handle)["2"], before["2"])


def test_convolutions_are_mixed_on_channels_and_detach_keeps_their_outputs():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3)).double()
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["0"]), autocast_adapter_dtype=False).double()
    handle = rmlora.attach(model, rmlora.polar())
    optimizer = toys.make_optimizer(model)
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    for _ in range(3):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    mixed = model.eval()(x)
    handle.detach()
    torch.testing.assert_close(model(x), mixed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [rmlora.polar, rmlora.stella])
def test_an_adapter_that_holds_something_is_refused_and_left_alone(method):
    model = toys.make_model()
    toys.train(model, steps=1)
    trained = toys.weights(model)
    with pytest.raises(MethodError, match=r"^0: B is not zero .*; attach to a fresh adapter, and load a trained one"):
        rmlora.attach(model, method())
    toys.assert_equal_weights(trained, toys.weights(model))
    assert rmlora.attached(model) == []


@pytest.mark.parametrize("method", [rmlora.polar, rmlora.stella])
def test_more_directions_than_a_side_has_are_refused(method):
    with pytest.raises(MethodError, match=r"^0 has 12 inputs and 16 outputs, too few for r=13 orthonormal directions"):
        rmlora.attach(toys.make_model(r=13), method())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rmlora.polar(weight=-1.0), "weight of the landing field's pull is -1.0; it must be finite and >= 0"),
        (lambda: rmlora.polar(field="flat"), 'field="flat" is not one of'),
        (lambda: rmlora.MixDirections("ones"), 'start="ones" is not one of'),
        (lambda: rmlora.stella(width=-1), "width=-1; it is the model's hidden size, an int >= 0"),
    ],
)
def test_values_that_make_no_sense_are_refused(make, message):
    with pytest.raises(MethodError, match=message):
        make()
