"""StelLA: against the slow transcription, exactly orthonormal after every step, decay, moments, resume, its start."""

import copy

import pytest
import torch

import rmlora
from rmlora.errors import MethodError
from rmlora.pairs import Factors
from rmlora.transforms.retract_factors import retract_factors
from tests import toys
from tests.reference import stella as slow
from tests.transforms.test_land import middles, residual

STEPS = 8
ADAM = {"lr": 1e-2, "eps": 1e-5}  # a larger eps: Adam divides rounding by tiny gradients


def is_orthonormal(handle, tolerance=1e-6):
    return all(residual(X.detach()) <= tolerance for pair in handle.pairs for X in (pair.A.mT, pair.B))


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("width", [0, 16, 40])
def test_bases_and_middle_equal_the_slow_transcription(width):
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.stella(width))
    started = middles(handle)
    layers = [
        slow.SlowLayer(p.layer.base_layer.weight, p.layer.base_layer.bias, p.B, p.A.T, p.scale, started[p.name])
        for p in handle.pairs
    ]
    head = copy.deepcopy(model.base_model.model[4].modules_to_save["default"])
    slow.train(layers, head, [toys.batch(step) for step in range(STEPS)], width=width, **ADAM)
    # Decay is on for A and B too: decoupled, it is no part of a step along the manifold.
    toys.train(model, torch.optim.AdamW(trained(model), weight_decay=0.05, **ADAM), steps=STEPS)
    for pair, layer in zip(handle.pairs, layers, strict=True):
        torch.testing.assert_close(pair.A.T, layer.V, rtol=0, atol=1e-12)
        torch.testing.assert_close(pair.B, layer.U, rtol=0, atol=1e-12)
        torch.testing.assert_close(middles(handle)[pair.name], layer.S, rtol=0, atol=1e-12)


OPTIMIZERS = {
    "adamw": lambda model: torch.optim.AdamW(trained(model), lr=5e-2, weight_decay=0.3),
    "sgd": lambda model: torch.optim.SGD(trained(model), lr=0.5, momentum=0.9, weight_decay=0.1),
    "rmsprop": lambda model: torch.optim.RMSprop(trained(model), lr=1e-2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("r", [1, 8, 12])
def test_bases_are_orthonormal_after_every_step_in_float32(optimizer, r):
    model = toys.make_model(dtype=torch.float32, r=r)
    handle = rmlora.attach(model, rmlora.stella())
    assert is_orthonormal(handle)
    started = [pair.B.clone() for pair in handle.pairs]
    stepping, held = OPTIMIZERS[optimizer](model), []
    toys.train(model, stepping, steps=25, dtype=torch.float32, watch=lambda step: held.append(is_orthonormal(handle)))
    assert all(held)
    assert is_orthonormal(handle)
    assert any(not torch.allclose(pair.B, was, atol=1e-2) for pair, was in zip(handle.pairs, started, strict=True))


def test_bases_are_orthonormal_at_the_size_of_a_real_layer():
    generator = torch.Generator().manual_seed(0)
    X = torch.linalg.qr(torch.randn(2, 3072, 32, generator=generator))[0]
    step = torch.randn(2, 3072, 32, generator=generator)
    for length in (1e-4, 1e-2, 1.0):
        moved = retract_factors(Factors(X.mT, X), Factors(X.mT, X + length * step))
        assert residual(moved.B) <= 1e-6


def test_bases_are_orthonormal_after_a_resume():
    first = toys.make_model(dtype=torch.float32)
    rmlora.attach(first, rmlora.stella())
    optimizer = toys.make_optimizer(first)
    toys.train(first, optimizer, steps=4, dtype=torch.float32)
    second = toys.make_model(dtype=torch.float32, seed=7)
    handle = rmlora.attach(second, rmlora.stella())
    second.load_state_dict(first.state_dict())
    resumed = toys.make_optimizer(second)
    resumed.load_state_dict(optimizer.state_dict())
    assert is_orthonormal(handle)
    held = []
    watch = {"watch": lambda step: held.append(is_orthonormal(handle))}
    toys.train(second, resumed, steps=5, start=4, dtype=torch.float32, **watch)
    assert all(held)
    assert is_orthonormal(handle)
    assert handle.step == 9


def test_a_saved_adapter_is_trained_on_by_loading_it_after_attaching(tmp_path):
    model = toys.make_model()
    rmlora.attach(model, rmlora.stella())
    toys.train(model, steps=4)
    model.save_pretrained(tmp_path)
    again = toys.make_model(seed=3)
    handle = rmlora.attach(again, rmlora.stella())
    again.load_adapter(tmp_path, "default")
    again.base_model.model.load_state_dict(model.base_model.model.state_dict())  # the toy's own frozen weights
    assert is_orthonormal(handle, 1e-12)
    torch.testing.assert_close(toys.outputs(again), toys.outputs(model), rtol=0, atol=1e-12)


def test_decoupled_decay_changes_nothing_and_moments_are_left_alone():
    ends = []
    for decay in (0.0, 0.5):
        model = toys.make_model(dropout=0.0)
        handle = rmlora.attach(model, rmlora.stella())
        head = [p for name, p in model.named_parameters() if "modules_to_save" in name]
        factors = [p for pair in handle.pairs for p in pair.parameters]
        groups = [{"params": factors, "weight_decay": decay}, {"params": head, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, **ADAM)
        toys.train(model, optimizer, steps=1)
        A = handle.pairs[0].parameters[0]
        assert (optimizer.state[A]["exp_avg"].square() * 0.1 - optimizer.state[A]["exp_avg_sq"]).abs().max() < 1e-15
        toys.train(model, optimizer, steps=5, start=1)
        ends.append(toys.weights(model))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=1e-12)


def test_it_begins_with_all_singular_values_at_the_scale():
    model = toys.make_model()
    plain = toys.outputs(model)
    handle = rmlora.attach(model, rmlora.stella())
    for A, B in handle.fold().values():
        torch.testing.assert_close(torch.linalg.svdvals(B @ A)[:8], torch.ones(8, dtype=A.dtype), rtol=0, atol=1e-12)
    assert not torch.allclose(toys.outputs(model), plain)


def test_no_decay_nor_pull_where_the_optimizer_did_nothing():
    X = torch.linalg.qr(torch.randn(2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    same = retract_factors(Factors(X.mT, X), Factors(X.mT, X))
    torch.testing.assert_close(same.B, X, rtol=0, atol=1e-14)


def test_factors_that_are_not_orthonormal_are_refused():
    with pytest.raises(MethodError, match=r"^0: factors are not orthonormal, .*; put MixDirections before it"):
        rmlora.attach(toys.make_model(), rmlora.RetractFactors())
