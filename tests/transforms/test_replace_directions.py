"""BeamLoRA: against the slow transcription; what is replaced, by what, and what travels along."""

import copy

import pytest
import torch
from torch import nn

import rmlora
from rmlora.errors import MethodError
from rmlora.pairs import Factors
from rmlora.transforms import choose_replacements, replace_directions
from tests import toys
from tests.reference import beamlora as slow

STEPS, MICRO, LR, DECAY, INTERVAL, TEMPERATURE = 22, 2, 1e-2, 0.05, 5, 0.05


def state_of(handle, key):
    """One tensor of every module's state, by name."""
    binding = handle._binding
    return {
        pair.name: tensors[f"0/{key}"][row]
        for stack, tensors in zip(binding.stacks, binding.state, strict=True)
        for row, pair in enumerate(stack.pairs)
    }


def micro_batches(step):
    return [toys.batch(MICRO * step + micro) for micro in range(MICRO)]


def train(model, optimizer, steps):
    for step in steps:
        for x, y in micro_batches(step):
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("mass", [0.95, 0.7])
def test_it_equals_the_slow_transcription(mass):
    model = toys.make_model(dropout=0.0, r=6)
    method = rmlora.beamlora(STEPS, interval=INTERVAL, mass=mass, temperature=TEMPERATURE)
    handle = rmlora.attach(model, method)
    layers = [
        slow.SlowLayer(p.layer.base_layer.weight, p.layer.base_layer.bias, p.A, p.B, p.scale, TEMPERATURE)
        for p in handle.pairs
    ]
    head = copy.deepcopy(model.base_model.model[4].modules_to_save["default"])
    threshold = slow.threshold(mass, STEPS)
    slow.train(layers, head, map(micro_batches, range(STEPS)), LR, DECAY, INTERVAL, threshold, STEPS)
    train(model, toys.make_optimizer(model, lr=LR, weight_decay=DECAY), range(STEPS))
    for pair, layer in zip(handle.pairs, layers, strict=True):
        torch.testing.assert_close(state_of(handle, "scores")[pair.name], layer.scores, rtol=0, atol=1e-12)
        torch.testing.assert_close(pair.A, layer.A, rtol=0, atol=1e-12)
        torch.testing.assert_close(pair.B, layer.B, rtol=0, atol=1e-12)
        assert state_of(handle, "replaced")[pair.name] == layer.replaced
    assert sum(layer.replaced for layer in layers) >= 2
    assert handle.metrics()["replaced"] == sum(layer.replaced for layer in layers)


def test_a_replaced_direction_is_the_older_copy_of_a_strong_one_with_its_moments():
    model = toys.make_model(dropout=0.0, r=6)
    handle = rmlora.attach(model, rmlora.beamlora(interval=6, mass=0.6))
    optimizer = toys.make_optimizer(model)
    train(model, optimizer, range(3))
    (pair, *_) = handle.pairs
    tensors = [
        value for p in pair.parameters for value in (p, *(optimizer.state[p][m] for m in ("exp_avg", "exp_avg_sq")))
    ]
    then = [value.detach().clone() for value in tensors]
    train(model, optimizer, range(3, 5))
    scores = state_of(handle, "scores")["0"].detach().clone()
    train(model, optimizer, range(5, 6))
    assert handle.metrics()["modules"]["0"]["replaced"] > 0
    weakest, strongest = scores.argmin(), scores.argmax()
    for index, (now, old) in enumerate(zip(tensors, then, strict=True)):
        place = 0 if index < 3 else 1
        assert torch.equal(now.select(place, weakest), old.select(place, strongest))
        assert not torch.equal(now.select(place, weakest), now.select(place, strongest)), "they are free to part"
    shared = state_of(handle, "scores")["0"]
    assert shared[weakest] == shared[strongest]
    assert not state_of(handle, "mean")["0"].any()
    assert state_of(handle, "steps")["0"] == 0


def test_nothing_is_replaced_in_the_last_interval_nor_at_mass_one():
    for settings in ({"total_steps": 9, "interval": 5, "mass": 0.5}, {"interval": 3, "mass": 1.0}):
        model = toys.make_model(dropout=0.0)
        handle = rmlora.attach(model, rmlora.beamlora(**settings))
        train(model, toys.make_optimizer(model), range(9))
        assert handle.metrics()["replaced"] == 0


def test_a_module_loses_at_most_half_of_its_directions_and_all_modules_compete():
    alike, sharp = torch.full((1, 4), 0.25), torch.tensor([[0.97, 0.01, 0.01, 0.01]])
    strong, weak = choose_replacements([alike, sharp], mass=0.98)
    assert strong.tolist() == [[0, 1, 2, 3]]
    assert weak.tolist() == [[0, 1, 1, 0]]
    assert choose_replacements([alike], mass=1.0)[0].tolist() == [[0, 1, 2, 3]]


def test_replacing_touches_nothing_else():
    torch.manual_seed(0)
    now, old = (Factors(torch.randn(2, 4, 3), torch.randn(2, 5, 4)) for _ in "ab")
    moved = replace_directions(now, old, torch.tensor([[0, 1, 2, 0], [0, 1, 2, 3]]))
    assert torch.equal(moved.A[1], now.A[1])
    assert torch.equal(moved.A[0, :3], now.A[0, :3])
    assert torch.equal(moved.A[0, 3], old.A[0, 0])
    assert torch.equal(moved.B[0, :, 3], old.B[0, :, 0])


def test_gates_have_mean_one_and_training_begins_as_plain_lora():
    plain, model = toys.make_model(), toys.make_model()
    for name, parameter in [*plain.named_parameters(), *model.named_parameters()]:
        if "lora_B" in name:
            nn.init.constant_(parameter, 0.1)
    handle = rmlora.attach(model, rmlora.beamlora())
    torch.testing.assert_close(toys.outputs(model), toys.outputs(plain), rtol=0, atol=1e-14)
    toys.train(model, steps=4)
    (link,) = handle.method.links
    for scores in state_of(handle, "scores").values():
        gates = link._gates(scores.detach())
        assert gates.mean().item() == pytest.approx(1.0, abs=1e-12)
        assert gates.std() > 0.05


@pytest.mark.parametrize("stop", [3, 4, 7, 10])
def test_stopping_anywhere_in_an_interval_and_going_on_changes_nothing(stop):
    method = rmlora.beamlora(30, interval=5, mass=0.7)
    straight = toys.make_model()
    rmlora.attach(straight, method)
    toys.train(straight, steps=12)
    first = toys.make_model()
    rmlora.attach(first, method)
    optimizer = toys.make_optimizer(first)
    toys.train(first, optimizer, steps=stop)
    second = toys.make_model(seed=3)
    second.load_state_dict(first.state_dict())
    resumed = toys.make_optimizer(second)
    handle = rmlora.attach(second, method, optimizer=resumed)
    resumed.load_state_dict(optimizer.state_dict())
    toys.train(second, resumed, steps=12 - stop, start=stop)
    toys.assert_equal_weights(toys.weights(straight), toys.weights(second))
    assert handle.metrics()["replaced"] > 0


def test_it_trains_under_sgd_and_refuses_moments_it_cannot_move():
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.beamlora(interval=2, mass=0.9))
    parameters = [p for p in model.parameters() if p.requires_grad]
    toys.train(model, torch.optim.SGD(parameters, lr=0.1, momentum=0.9), steps=4)
    assert handle.step == 4
    for kind, settings in ((torch.optim.Adafactor, {}), (torch.optim.AdamW, {"amsgrad": True})):
        model = toys.make_model()
        rmlora.attach(model, rmlora.beamlora(interval=2))
        optimizer = kind([p for p in model.parameters() if p.requires_grad], **settings)
        with pytest.raises(MethodError, match="use AdamW without amsgrad, or SGD"):
            toys.train(model, optimizer, steps=1)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"interval": 1}, "interval=1; it counts"),
        ({"total_steps": 0}, "total_steps=0; it counts"),
        ({"mass": 0.0}, "mass=0.0; it is a share"),
        ({"mass": 1.1, "total_steps": 9}, "mass=1.1; it is a share"),
        ({"temperature": 0.0}, "temperature=0.0; it must be finite and > 0"),
    ],
)
def test_values_that_make_no_sense_are_refused(knobs, message):
    with pytest.raises(MethodError, match=message):
        rmlora.beamlora(**knobs)
