"""Gradient checkpointing, reentrant and not: the same gradients, masks and weights as without."""

import copy

import pytest
import torch

import rmlora
from tests import tiny

METHOD = rmlora.rm_lora(weight=1e-2, directions=2)
STEPS = 4


def start(name, reentrant, dtype=torch.float64):
    """Return a model with dropout on; `reentrant` None means no checkpointing."""
    model = tiny.adapted(name, dtype=dtype, lora_dropout=0.2)
    if reentrant is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.enable_input_require_grads()
    return model


def backward(model, name):
    torch.manual_seed(0)
    model.train()
    model(**tiny.inputs(name)).loss.backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_masked_gradients(name, reentrant):
    plain, checkpointed = start(name, None), start(name, reentrant)
    recomputed = []
    layer = next(module for key, module in checkpointed.named_modules() if key.endswith("lora_A.default"))
    layer.register_forward_hook(lambda *_: recomputed.append(True))
    handle = rmlora.attach(plain, METHOD)
    rmlora.attach(checkpointed, METHOD)
    expected, found = backward(plain, name), backward(checkpointed, name)
    assert len(recomputed) == 2  # once forward, once in backward: checkpointing was on
    assert tiny.distance(expected, found) <= 1e-12
    for pair in handle.pairs:
        assert pair.parameters[1].grad.abs().sum(0).count_nonzero() == 2


@pytest.mark.parametrize("preset", ["paper", "strict", "authors"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_ends_at_the_same_weights(preset, reentrant):
    method = rmlora.rm_lora(weight=1e-2, directions=2, preset=preset)
    results = []
    for model in (start("llama", None), start("llama", reentrant)):
        handle = rmlora.attach(model, method)
        tiny.train(model, "llama", tiny.adamw(model), range(STEPS))
        assert handle.step == STEPS
        results.append(tiny.learnt(model))
    assert tiny.distance(*results) <= 1e-10


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_run_resumed_under_checkpointing_finds_its_optimizer(reentrant):
    straight = start("llama", reentrant)
    rmlora.attach(straight, METHOD)
    optimizer = tiny.adamw(straight)
    tiny.train(straight, "llama", optimizer, range(2))
    weights = {key: value.clone() for key, value in straight.state_dict().items()}
    state = copy.deepcopy(optimizer.state_dict())

    resumed = start("llama", reentrant)
    resumed.load_state_dict(weights)
    rmlora.attach(resumed, METHOD)
    other = tiny.adamw(resumed)
    other.load_state_dict(state)
    tiny.train(resumed, "llama", other, range(2, STEPS))
    tiny.train(straight, "llama", optimizer, range(2, STEPS))
    assert tiny.distance(tiny.learnt(straight), tiny.learnt(resumed)) == 0.0
