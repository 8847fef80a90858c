"""Whose parameters: deep copies, replaced parameters, frozen pairs, several adapters."""

import copy

import torch

import rmlora
from tests import toys


def test_a_deep_copy_trains_by_the_method_on_its_own():
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.rm_lora(1e-2, 3))
    toys.train(model, steps=3)
    twin = copy.deepcopy(model)
    (twin_handle,) = rmlora.attached(twin)
    assert twin_handle.step == 3
    toys.train(model, toys.make_optimizer(model), steps=3, start=3)
    assert (handle.step, twin_handle.step) == (6, 3)
    toys.train(twin, toys.make_optimizer(twin), steps=3, start=3)
    assert (handle.step, twin_handle.step) == (6, 6)
    toys.assert_equal_weights(toys.weights(model), toys.weights(twin))


def test_parameters_replaced_by_assign_loading_are_found_again():
    straight, swapped = toys.make_model(), toys.make_model()
    handles = [rmlora.attach(m, rmlora.rm_lora(1e-2, 3, policy="update")) for m in (straight, swapped)]
    for model in (straight, swapped):
        toys.train(model, steps=2)
    fresh = {name: value.clone() for name, value in swapped.state_dict().items()}
    trainable = {name for name, p in swapped.named_parameters() if p.requires_grad}
    swapped.load_state_dict(fresh, assign=True)
    for name, parameter in swapped.named_parameters():
        parameter.requires_grad_(name in trainable)
    for model in (straight, swapped):
        toys.train(model, steps=2, start=2)
    assert [handle.step for handle in handles] == [4, 4]
    toys.assert_equal_weights(toys.weights(straight), toys.weights(swapped))


def test_pairs_without_gradient_are_left_alone():
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.rm_lora(1e-1, 3, policy="state"))
    frozen = handle.pairs[1].parameters
    for parameter in frozen:
        parameter.requires_grad_(False)
    before = [p.clone() for p in frozen]
    toys.train(model, steps=3)
    assert handle.step == 3
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))


def test_two_adapters_train_by_two_methods():
    model = toys.make_model()
    from peft import LoraConfig

    model.add_adapter("other", LoraConfig(r=4, target_modules=["0", "2"], lora_dropout=0.0))
    model.to(torch.float64)
    first = rmlora.attach(model, rmlora.rm_lora(1e-2, 3), adapter_name="default")
    second = rmlora.attach(model, rmlora.gm_lora(2), adapter_name="other")
    optimizer = torch.optim.AdamW([p for n, p in model.named_parameters() if "lora_" in n], lr=1e-2)
    toys.train(model, optimizer, steps=2)
    model.set_adapter("other")
    toys.train(model, optimizer, steps=3, start=2)
    assert (first.step, second.step) == (2, 3)
    assert {handle.adapter for handle in rmlora.attached(model)} == {"default", "other"}
