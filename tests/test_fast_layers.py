"""Layers on the fast path: the numbers of PEFT's own forward, and PEFT's own forward wherever it alone is right."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.utils.checkpoint import checkpoint

import rmlora
from rmlora.fast_layers import FastLinear
from tests import tiny, toys, zoo

METHOD = rmlora.rm_lora(weight=1e-2, directions=2)
STEADY = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "deberta": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "vit": {},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {},
}


def start(name, fast, dtype=torch.float32, method=METHOD, **base):
    model = tiny.adapted(name, base=STEADY[name] | base, dtype=dtype, init_lora_weights=False).train()
    return model, rmlora.attach(model, method, fast=fast)


def run(model, name, dtype=torch.float32, seed=0):
    """Return loss, logits and gradients of one pass."""
    model.zero_grad()
    out = model(**tiny.inputs(name, seed=seed, dtype=dtype))
    out.loss.backward()
    found = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": out.loss.detach(), "logits": out.logits.detach()}


def assert_close(first, second, tolerance):
    assert first.keys() == second.keys()
    for key, value in second.items():
        assert (first[key] - value).norm() <= tolerance * value.norm().clamp(min=1e-3), key


def ways(handle):
    return {how.split(":")[0] for how in handle.paths().values()}


@pytest.mark.parametrize("name", STEADY)
# A layer agrees to 1e-6 in float32 (`tests/kernels`); through a whole model either path's rounding grows.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_every_architecture_gives_the_numbers_of_the_reference_path(name, dtype, tolerance):
    (fast, handle), (slow, reference) = (start(name, fast, dtype) for fast in (True, False))
    assert_close(run(fast, name, dtype), run(slow, name, dtype), tolerance)
    assert ways(handle) <= {"fused", "merged"}
    assert set(reference.paths().values()) == {"reference: fast=False"}
    assert handle.kept() == reference.kept()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    plain, checkpointed = start("bert", True)[0], start("bert", True)[0]
    checkpointed.enable_input_require_grads()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_close(run(checkpointed, "bert"), run(plain, "bert"), 1e-6)


def test_a_module_used_twice_in_one_pass_sums_both_gradients():
    found = []
    for fast in (True, False):
        model = toys.make_model(dropout=0.0)
        handle = rmlora.attach(model, METHOD, fast=fast)
        layer = handle.pairs[1].layer
        x = toys.batch(0)[0].repeat(1, 2)[:, : toys.HIDDEN]
        layer(torch.tanh(layer(x))).sum().backward()
        found.append({i: p.grad for i, p in enumerate(handle.pairs[1].parameters)})
    assert_close(*found, 1e-13)


def test_a_checkpointed_layer_used_alone_recomputes_the_same():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, METHOD)
    x = toys.batch(0)[0].requires_grad_()
    layer = handle.pairs[0].layer
    layer(x).sum().backward()
    plain = [p.grad.clone() for p in (x, *handle.pairs[0].parameters)]
    model.zero_grad()
    x.grad = None
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip((x, *handle.pairs[0].parameters), plain, strict=True))


def test_autocast_is_as_near_to_full_precision_as_the_reference_path():
    truth = run(start("bert", False)[0], "bert")
    errors = {}
    for fast in (True, False):
        model, handle = start("bert", fast)
        with torch.autocast("cpu", torch.bfloat16):
            found = run(model, "bert")
        assert ways(handle) == ({"fused"} if fast else {"reference"})
        assert found.keys() == truth.keys()
        errors[fast] = sum((found[key] - truth[key]).norm() / truth[key].norm() for key in truth)
    assert errors[True] <= 1.2 * errors[False]


def test_a_bf16_base_with_factors_in_float32_stays_fused_and_near():
    truth, errors = run(start("bert", False)[0], "bert"), {}
    for fast in (True, False):
        torch.manual_seed(0)
        bare = tiny.bert(**STEADY["bert"]).bfloat16()
        model = get_peft_model(bare, tiny.lora_config("bert", init_lora_weights=False)).train()
        handle = rmlora.attach(model, METHOD, fast=fast)
        found = run(model, "bert", torch.bfloat16)
        assert ways(handle) == ({"fused"} if fast else {"reference"})
        assert all(p.dtype == torch.float32 == p.grad.dtype for pair in handle.pairs for p in pair.parameters)
        errors[fast] = sum((found[key].float() - truth[key]).norm() / truth[key].norm() for key in truth)
    assert errors[True] <= 1.5 * errors[False]


def test_a_quantised_base_runs_its_own_forward():
    found = []
    for fast in (True, False):
        model = zoo.adapted("int8")
        handle = rmlora.attach(model, METHOD, fast=fast)
        zoo.compute_loss(model, 0).backward()
        found.append({i: p.grad for i, p in enumerate(handle.pairs[0].parameters)})
        assert ways(handle) == ({"added"} if fast else {"reference"})
    assert_close(*found, 1e-13)


def outputs(model):
    with torch.no_grad():
        return model(toys.batch(3)[0])


def test_switching_on_the_fly_stays_right():
    model, plain = (toys.make_model(dropout=0.0, init_lora_weights=False) for _ in range(2))
    handle = rmlora.attach(model, METHOD)
    close = {"rtol": 0, "atol": 1e-13}
    for at in ("train", "eval", "train"):
        getattr(model, at)(), getattr(plain, at)()
        torch.testing.assert_close(
            outputs(model), outputs(plain), **(close if at == "train" else {"rtol": 0, "atol": 0})
        )
    assert not any(how.startswith("reference") for how in handle.paths().values())
    with model.disable_adapter(), plain.disable_adapter():
        torch.testing.assert_close(outputs(model), outputs(plain), **close)
    assert set(handle.paths().values()) == {"reference: its adapters are disabled"}
    merged = copy.deepcopy(model)
    merged.merge_adapter()
    torch.testing.assert_close(outputs(merged), outputs(plain), **close)
    merged.unmerge_adapter()
    torch.testing.assert_close(outputs(merged), outputs(plain), rtol=0, atol=1e-12)
    torch.testing.assert_close(outputs(model.merge_and_unload()), outputs(plain), rtol=0, atol=1e-12)


def test_another_active_adapter_is_computed_by_peft():
    model, plain = (toys.make_model(dropout=0.0, init_lora_weights=False) for _ in range(2))
    rmlora.attach(model, METHOD)
    for each in (model, plain):
        torch.manual_seed(5)
        each.add_adapter("other", LoraConfig(r=3, target_modules=["0"], init_lora_weights=False))
        each.to(torch.float64)
    for active in ("other", "default"):
        for each in (model, plain):
            each.set_adapter(active)
        torch.testing.assert_close(outputs(model), outputs(plain), rtol=0, atol=1e-13)
    for each in (model, plain):
        each.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(outputs(model), outputs(plain), rtol=0, atol=1e-13)


def hook_on_A(model, layer):
    layer.lora_A["default"].register_forward_hook(lambda module, args, out: 2 * out)


def hook_on_base(model, layer):
    layer.get_base_layer().register_forward_pre_hook(lambda module, args: (2 * args[0],))


def train_the_base(model, layer):
    layer.get_base_layer().weight.requires_grad_()


def use_dora(model, layer):
    return toys.make_model(dropout=0.0, use_dora=True)


REASONS = {
    "hooks on its inner modules": hook_on_A,
    "hooks on its inner modules ": hook_on_base,
    "its frozen weight is trained too": train_the_base,
    "DoraLinearVariant": use_dora,
    "A or B is more than a matrix": lambda model, layer: toys.make_model(dropout=0.0, lora_bias=True),
    "lora_dropout draws for every entry of its input": lambda model, layer: toys.make_model(dropout=0.5),
}


@pytest.mark.parametrize("why", REASONS)
def test_where_the_fast_path_cannot_be_right_peft_computes_and_the_handle_says_why(why):
    found = []
    for fast in (True, False):
        model = toys.make_model(dropout=0.0)
        model = REASONS[why](model, model.base_model.model[0]) or model
        handle = rmlora.attach(model, METHOD, fast=fast)
        model.train()
        toys.compute_gradients(model, 0)
        found.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
        if fast:
            assert handle.paths()["0"] == f"reference: {why.strip()}"
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[1])


def test_transforms_of_functions_go_through_peft():
    model, plain = (toys.make_model(dropout=0.0, init_lora_weights=False).train() for _ in range(2))
    handle = rmlora.attach(model, METHOD)
    x = toys.batch(0)[0]
    with torch.no_grad():
        assert torch.equal(torch.func.vmap(model)(x), torch.func.vmap(plain)(x))
    assert set(handle.paths().values()) == {"reference: torch.func transforms"}


def test_a_second_derivative_through_a_model_is_that_of_the_reference_path():
    found = []
    for fast in (True, False):
        model = toys.make_model(dropout=0.0, init_lora_weights=False)
        rmlora.attach(model, rmlora.r_lora(), fast=fast)
        x = toys.batch(0)[0].requires_grad_()
        (slope,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x, create_graph=True)
        slope.square().sum().backward()
        found.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert_close(*found, 1e-12)


def test_copies_and_detached_models_keep_to_themselves():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, METHOD)
    twin = copy.deepcopy(model)
    toys.train(twin, steps=3)
    assert handle.step == 0
    assert type(handle.pairs[0].layer) is FastLinear
    with pytest.warns(rmlora.RmloraWarning):
        handle.detach()
    assert type(handle.pairs[0].layer) is Linear
    assert not [key for key in vars(handle.pairs[0].layer) if key.startswith("rmlora_fast")]
    assert type(twin.base_model.model[0]) is FastLinear


def test_a_layer_that_has_no_fast_form_says_so():
    model = get_peft_model(zoo.make_conv1d(), LoraConfig(r=2, target_modules=["layer"]))
    handle = rmlora.attach(model, METHOD)
    assert handle.paths() == {"layer": "reference: Conv1d has no fast form"}


def test_a_method_that_acts_in_the_forward_pass_says_so():
    handle = rmlora.attach(toys.make_model(dropout=0.0), rmlora.sora())
    assert set(handle.paths().values()) == {"reference: the method acts in the forward pass"}


def test_frozen_weights_are_neither_copied_nor_changed():
    model = toys.make_model(dropout=0.0)
    base = model.base_model.model[0].get_base_layer()
    assert isinstance(base, nn.Linear)
    before, address = base.weight.clone(), base.weight.data_ptr()
    rmlora.attach(model, METHOD)
    toys.train(model, steps=3)
    assert torch.equal(base.weight, before)
    assert base.weight.data_ptr() == address
