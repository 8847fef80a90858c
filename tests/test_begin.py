"""Links that do not start from PEFT's own factors."""

import torch

import rmlora
from tests import toys
from tests.dummies import BeginAt


def values(handle):
    return {pair.name: {*pair.A.flatten().tolist(), *pair.B.flatten().tolist()} for pair in handle.pairs}


def test_attaching_writes_the_factors_a_link_begins_with_into_the_live_parameters():
    model = toys.make_model()
    parameters = dict(model.named_parameters())
    handle = rmlora.attach(model, rmlora.chain(BeginAt(0.25), rmlora.rm_lora(1e-3, 4)))
    assert values(handle) == {"0": {0.25}, "2": {0.25}}
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())


def test_only_lets_the_other_modules_begin_as_peft_does():
    plain = toys.weights(toys.make_model())
    model = toys.make_model()
    rmlora.attach(model, rmlora.only("^0$", BeginAt(0.25)))
    changed = {name for name, value in toys.weights(model).items() if not torch.equal(value, plain[name])}
    assert changed == {f"base_model.model.0.lora_{side}.default.weight" for side in "AB"}


def test_nothing_begins_again_when_parameters_are_replaced_or_the_model_is_copied():
    model = toys.make_model()
    handle = rmlora.attach(model, BeginAt(0.25))
    toys.train(model, steps=2)
    trained = toys.weights(model)
    model.load_state_dict(trained, assign=True)
    toys.compute_gradients(model, 2)
    assert handle.step == 2
    toys.assert_equal_weights(trained, toys.weights(model))
