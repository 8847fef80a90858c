"""The mask on axes beside gm_lora, under clipping, scalers and Accelerate, in a closure; and what is refused."""

import copy

import pytest
import torch
from accelerate import Accelerator
from peft import BOFTConfig, LoKrConfig, LoraConfig, get_peft_model
from torch import nn

import rmlora
from rmlora.errors import AttachError, MethodError, StateError
from tests import toys, zoo
from tests.axes import adapters

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("policy", ["gradient", "update"])
@pytest.mark.parametrize("directions", [3, 0.25, lambda step: 1 + step])
@pytest.mark.parametrize("path", ["reference", "fast"])
def test_on_plain_lora_it_is_gm_lora(policy, directions, path):
    settings = {"policy": policy, "resample_steps": 2, "mask_first_step": False}
    model = toys.make_model(dropout=0.0)
    handle = rmlora.mask_axes(model, directions, seed=4, **settings)
    other = toys.make_model(dropout=0.0)
    method = rmlora.chain(rmlora.MaskDirections(directions, **settings))
    attached = rmlora.attach(other, method, seed=4, fast=path == "fast")
    optimizers = [torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-2) for m in (model, other)]
    for step in range(8):
        assert {name: (rows, rows) for name, rows in handle.kept().items()} == attached.kept()
        for m, optimizer in zip((model, other), optimizers, strict=True):
            toys.train(m, optimizer, steps=1, start=step)
    names = dict(model.named_parameters())
    for key, value in other.named_parameters():
        torch.testing.assert_close(names[key], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in zoo.KINDS if kind != "attention"])
def test_every_kind_of_lora_layer_has_the_masks_of_gm_lora(kind):
    model, other = zoo.adapted(kind), zoo.adapted(kind)
    handle = rmlora.mask_axes(model, directions=2, seed=1)
    attached = rmlora.attach(other, rmlora.gm_lora(directions=2), seed=1, fast=False)
    assert {name: (rows, rows) for name, rows in handle.kept().items()} == attached.kept()
    for m in (model, other):
        optimizer = torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=1e-2)
        for step in range(3):
            zoo.compute_loss(m, step).backward()
            optimizer.step()
            optimizer.zero_grad()
    toys.assert_equal_weights(toys.weights(other), toys.weights(model))


def test_a_clipping_trainer_sees_masked_gradients():
    model, plain = adapters.make_model("ia3"), adapters.make_model("ia3")
    rmlora.mask_axes(model, directions=1)
    norms = []
    for m in (model, plain):
        adapters.compute_loss("ia3", m, 0).backward()
        norms.append(nn.utils.clip_grad_norm_([p for k, p in m.named_parameters() if "ia3" in k], 1.0))
    assert norms[0] < 0.9 * norms[1]


def test_a_skipped_step_changes_nothing():
    model = adapters.make_model("vera").float()
    handle = rmlora.mask_axes(model)
    optimizer = adapters.make_optimizer(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before, kept = toys.weights(model), handle.kept()
    x, y = toys.batch(0, torch.float32)
    for factor, steps in ((float("inf"), 0), (1.0, 1)):
        scaler.scale(nn.functional.cross_entropy(model(x), y) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert handle.step == steps
        assert (handle.kept() == kept) == (steps == 0)
        assert toys.differ(before, toys.weights(model)) == (steps == 1)


def test_accelerate_counts_each_optimizer_step_once():
    model = adapters.make_model("vera")
    handle = rmlora.mask_axes(model)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    prepared, optimizer = accelerator.prepare(model, adapters.make_optimizer(model))
    for step in range(6):
        with accelerator.accumulate(prepared):
            accelerator.backward(adapters.compute_loss("vera", prepared, step))
            optimizer.step()
            optimizer.zero_grad()
    assert handle.step == 3


@pytest.mark.parametrize("policy", ["gradient", "update"])
def test_a_closure_ends_where_a_plain_step_does(policy):
    weights = []
    for is_closure in (False, True):
        model = adapters.make_model("loha")
        rmlora.mask_axes(model, policy=policy)
        optimizer = adapters.make_optimizer(model)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = adapters.compute_loss("loha", model, 0)
            loss.backward()
            return loss

        for _ in range(3):
            if is_closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        weights.append(toys.weights(model))
    toys.assert_equal_weights(*weights)


def test_parameters_replaced_by_assign_loading_are_masked_on():
    model, straight = adapters.make_model("loha"), adapters.make_model("loha")
    rmlora.mask_axes(model)
    rmlora.mask_axes(straight)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_("hada" in key or "modules_to_save" in key)
    adapters.train("loha", model, adapters.make_optimizer(model), 4)
    adapters.train("loha", straight, adapters.make_optimizer(straight), 4)
    toys.assert_equal_weights(toys.weights(straight), toys.weights(model))


def test_after_detaching_everything_learns_and_a_context_detaches():
    model, plain = adapters.make_model("loha"), adapters.make_model("loha")
    with rmlora.mask_axes(model, directions=1) as handle:
        assert repr(handle).startswith("MaskedAxes(4 axes, step=0, MaskDirections(directions=1,")
        assert len(handle) == 4
    with pytest.raises(AttachError, match="already detached"):
        handle.detach()
    for m in (model, plain):
        adapters.train("loha", m, adapters.make_optimizer(m), 2)
    toys.assert_equal_weights(toys.weights(plain), toys.weights(model))
    assert handle.step == 0


def test_what_is_left_whole_is_named():
    assert rmlora.mask_axes(adapters.make_model("vera")).whole == [
        "0.vera_lambda_b.default",
        "2.vera_lambda_b.default",
        "4.modules_to_save.default.weight",
        "4.modules_to_save.default.bias",
    ]
    assert set(rmlora.mask_axes(adapters.make_model("loha")).sizes) == {"0/w1", "0/w2", "2/w1", "2/w2"}


def two_adapters():
    model = adapters.make_model("lora")
    model.add_adapter("other", LoraConfig(r=4, target_modules=["0"]))
    return model


def driven():
    model = adapters.make_model("lora")
    rmlora.attach(model, rmlora.r_lora(1e-3))
    return model


def masked_already():
    model = adapters.make_model("lora")
    rmlora.mask_axes(model)
    return model


def of_boft():
    return get_peft_model(toys.make_base(), BOFTConfig(target_modules=["0"], boft_block_size=2))


def of_whole_kronecker_factors():
    return get_peft_model(toys.make_base(), LoKrConfig(r=16, target_modules=["0"]))


REFUSED = [
    (toys.make_base, {}, AttachError, "a plain Sequential without PEFT layers; mask_axes knows LoRA"),
    (of_boft, {}, AttachError, "no axis of directions found on PEFT layers"),
    (of_whole_kronecker_factors, {}, AttachError, "no axis of directions found on PEFT layers"),
    (two_adapters, {}, AttachError, r"2 adapters are on this model \(\['default', 'other'\]\)"),
    (two_adapters, {"adapter_name": "third"}, AttachError, 'no adapter "third"'),
    (two_adapters, {"adapter_name": "other"}, AttachError, 'adapter "other" trains no tensor'),
    (driven, {}, AttachError, "trains by a method already .* chain MaskDirections to it instead"),
    (masked_already, {}, AttachError, "is masked already"),
    (lambda: adapters.make_model("ia3"), {"directions": 17}, MethodError, "directions=17 exceeds r=16 of 0"),
    (lambda: adapters.make_model("ia3"), {"directions": 0}, MethodError, "directions=0"),
    (lambda: adapters.make_model("ia3"), {"policy": "state"}, MethodError, 'policy="state" is not one of'),
    (lambda: adapters.make_model("ia3"), {"resample_steps": 0}, MethodError, "resample_steps=0"),
    (
        lambda: get_peft_model(nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), LoraConfig(r=4, target_modules=["0"])),
        {},
        AttachError,
        "does not line up with 4 directions",
    ),
]


@pytest.mark.parametrize(("make", "settings", "error", "message"), REFUSED)
def test_what_cannot_be_masked_is_refused_in_one_line(make, settings, error, message):
    with pytest.raises(error, match=message) as refused:
        rmlora.mask_axes(make(), **settings)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_of_another_seed_or_step_is_refused():
    model = adapters.make_model("vera")
    rmlora.mask_axes(model, seed=1)
    optimizer = adapters.make_optimizer(model)
    adapters.train("vera", model, optimizer, 2)
    saved = optimizer.state_dict()
    other = adapters.make_model("vera")
    handle = rmlora.mask_axes(other, seed=2)
    optimizer = adapters.make_optimizer(other)
    optimizer.load_state_dict(saved)
    with pytest.raises(StateError, match="written with seed=1, these masks use seed=2"):
        handle.bind(optimizer)
    third = adapters.make_model("vera")
    rmlora.mask_axes(third, seed=1)
    adapters.compute_loss("vera", third, 0).backward()
    optimizer = adapters.make_optimizer(third)
    optimizer.load_state_dict(saved)
    with pytest.raises(
        StateError, match=r"resumes at step 2 \(seed 1\), but the masks of this step were drawn for step 0"
    ):
        optimizer.step()
    with pytest.raises(AttachError, match="holds none of the adapter's tensors"):
        rmlora.mask_axes(adapters.make_model("vera"), optimizer=optimizer)
