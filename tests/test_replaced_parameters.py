"""Copies, assign-loading, casts and moves in the middle of training: the method goes on as if nothing happened."""

import copy
import pickle

import pytest
import torch

import rmlora
from tests import tiny

NAME = "bert"
METHODS = {
    "paper": rmlora.rm_lora(weight=1e-2, directions=2),
    "strict": rmlora.rm_lora(weight=1e-2, directions=2, preset="strict"),
}


@pytest.fixture(params=METHODS)
def halfway(request):
    """A model trained for two steps, its optimizer, and where two further steps lead."""
    model = tiny.adapted(NAME, lora_dropout=0.2)
    handle = rmlora.attach(model, METHODS[request.param])
    optimizer = tiny.adamw(model)
    tiny.train(model, NAME, optimizer, range(2))
    there = copy.deepcopy(model)
    same = tiny.adamw(there)
    same.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    tiny.train(there, NAME, same, range(2, 4))
    return model, handle, optimizer, tiny.learnt(there)


def test_a_deep_copy_goes_on_as_its_original(halfway):
    model, handle, optimizer, goal = halfway
    tiny.train(model, NAME, optimizer, range(2, 4))
    assert handle.step == 4
    assert tiny.distance(tiny.learnt(model), goal) == 0.0


def test_training_a_copy_leaves_the_original_alone(halfway):
    model, handle, optimizer, goal = halfway
    other = copy.deepcopy(model)
    before = tiny.learnt(model)
    tiny.train(other, NAME, tiny.adamw(other), range(5))
    assert handle.step == 2
    assert rmlora.attached(other)[0].step == 7
    assert tiny.distance(tiny.learnt(model), before) == 0.0
    tiny.train(model, NAME, optimizer, range(2, 4))
    assert tiny.distance(tiny.learnt(model), goal) == 0.0


def test_a_copy_of_model_and_optimizer_together_goes_on(halfway):
    """Early stopping keeps the best by copying both at once; parameters stay shared between the copies."""
    model, _, optimizer, goal = halfway
    other, its_optimizer = copy.deepcopy((model, optimizer))
    tiny.train(other, NAME, its_optimizer, range(2, 4))
    assert rmlora.attached(other)[0].step == 4
    assert tiny.distance(tiny.learnt(other), goal) == 0.0


def test_a_pickled_copy_goes_on(halfway):
    model, _, optimizer, goal = halfway
    other, its_optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    tiny.train(other, NAME, its_optimizer, range(2, 4))
    assert tiny.distance(tiny.learnt(other), goal) == 0.0


def test_loading_by_assignment_keeps_the_method_at_work(halfway):
    model, handle, optimizer, goal = halfway
    state = copy.deepcopy(optimizer.state_dict())
    old = {id(p) for pair in handle.pairs for p in pair.parameters}
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert not old & {id(p) for pair in handle.pairs for p in pair.parameters}
    fresh = tiny.adamw(model)
    fresh.load_state_dict(state)
    handle.bind(fresh)
    tiny.train(model, NAME, fresh, range(2, 4))
    assert handle.step == 4
    assert tiny.distance(tiny.learnt(model), goal) == 0.0


def test_a_fresh_optimizer_after_assignment_is_found_and_goes_on_counting(halfway):
    model, handle, optimizer, _ = halfway
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    mask = handle.kept()
    del optimizer
    tiny.train(model, NAME, tiny.adamw(model), range(2, 3))
    assert handle.step == 3
    assert handle.kept() != mask


def test_casting_the_model_back_and_forth_keeps_the_method_at_work(halfway):
    model, handle, optimizer, goal = halfway
    model.to(torch.float64)
    model.to(torch.float32)
    tiny.train(model, NAME, optimizer, range(2, 4))
    assert handle.step == 4
    assert tiny.distance(tiny.learnt(model), goal) == 0.0


def test_freezing_and_unfreezing_factors_counts_no_step(halfway):
    model, handle, optimizer, goal = halfway
    parameters = [p for pair in handle.pairs for p in pair.parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    head = torch.optim.SGD(tiny.trained(model), lr=0.0)
    tiny.train(model, NAME, head, range(1))
    assert handle.step == 2
    for parameter in parameters:
        parameter.requires_grad_(True)
    tiny.train(model, NAME, optimizer, range(2, 4))
    assert tiny.distance(tiny.learnt(model), goal) == 0.0
