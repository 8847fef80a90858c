"""Several adapters on one model: each trains by its own method, and PEFT's operations behave as for plain LoRA."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import rmlora
from rmlora.errors import AttachError
from tests import tiny

NAME = "llama"
METHOD = rmlora.rm_lora(weight=1e-2, directions=2)


def start(*names, seed=0):
    """Return a model with one adapter per name; the first is active."""
    torch.manual_seed(seed)
    model = get_peft_model(tiny.TINY[NAME].build(), tiny.lora_config(NAME), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, tiny.lora_config(NAME))
    return model


def train(model, adapter, steps=range(3)):
    model.set_adapter(adapter)
    tiny.train(model, NAME, tiny.adamw(model), steps)


def factors(model, adapter):
    return {n: p.detach().clone() for n, p in model.named_parameters() if f".{adapter}." in n}


@torch.no_grad()
def outputs(model, **options):
    batch = {key: value for key, value in tiny.inputs(NAME, seed=50).items() if key != "labels"}
    return model.eval()(**batch, **options).logits


def twins():
    """Return a model trained with the method attached, and a plain copy of its weights."""
    model, plain = start("first", "second"), start("first", "second")
    handle = rmlora.attach(model, METHOD, adapter_name="first")
    train(model, "first")
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # so that the untrained adapter does something, too
            if "lora_B.second" in name:
                parameter.normal_()
    plain.load_state_dict(model.state_dict())
    plain.set_adapter("first")
    return model, plain, handle


def test_switching_between_adapters_trains_each_as_if_it_were_alone():
    both = start("first", "second")
    handles = {name: rmlora.attach(both, METHOD, adapter_name=name) for name in ("first", "second")}
    alone = {}
    for name in ("first", "second"):
        model = start("first", "second")
        rmlora.attach(model, METHOD, adapter_name=name)
        train(model, name)
        alone[name] = factors(model, name)
    for name in ("first", "second"):
        train(both, name)
        assert handles[name].step == 3
    assert tiny.distance(factors(both, "first"), alone["first"]) == 0.0
    assert tiny.distance(factors(both, "second"), alone["second"]) == 0.0


def test_a_step_of_another_adapter_uses_no_mask_of_this_one():
    model = start("first", "second")
    handle = rmlora.attach(model, METHOD, adapter_name="first")
    before, mask = factors(model, "first"), handle.kept()
    train(model, "second")
    assert handle.step == 0
    assert handle.kept() == mask
    assert tiny.distance(before, factors(model, "first")) == 0.0
    assert tiny.distance(factors(start("first", "second"), "second"), factors(model, "second")) > 1e-3


def test_one_optimizer_over_all_adapters_moves_only_what_was_used():
    model = start("first", "second")
    handles = [rmlora.attach(model, METHOD, adapter_name=name) for name in ("first", "second")]
    model.base_model.set_adapter(["first", "second"])
    optimizer = tiny.adamw(model)
    model.set_adapter("first")
    before = factors(model, "second")
    tiny.train(model, NAME, optimizer)
    assert [handle.step for handle in handles] == [4, 0]
    assert tiny.distance(before, factors(model, "second")) == 0.0


def test_several_active_adapters_have_to_be_named():
    model = start("first", "second")
    model.base_model.set_adapter(["first", "second"])
    with pytest.raises(AttachError, match="2 LoRA adapters are active"):
        rmlora.attach(model, METHOD)


def test_disabling_an_adapter_gives_the_base_and_enabling_it_goes_on():
    model, plain, _ = twins()
    with model.disable_adapter(), plain.disable_adapter():
        assert torch.equal(outputs(model), outputs(plain))
        base = outputs(model)
    assert torch.equal(outputs(model), outputs(plain))
    assert not torch.allclose(outputs(model), base)


def test_mixed_adapter_batches_give_the_outputs_of_plain_lora():
    model, plain, _ = twins()
    names = ["first", "second", "__base__", "first"]
    mixed = outputs(model, adapter_names=names)
    assert torch.equal(mixed, outputs(plain, adapter_names=names))
    assert torch.allclose(mixed[0], outputs(model)[0], atol=1e-6)
    assert not torch.allclose(mixed[2], outputs(model)[2])


@pytest.mark.parametrize("combination", ["linear", "cat", "svd"])
def test_a_weighted_adapter_is_that_of_plain_lora(combination):
    model, plain, handle = twins()
    for each in (model, plain):
        each.add_weighted_adapter(["first", "second"], [0.7, 0.3], "sum", combination_type=combination)
        each.set_adapter("sum")
    assert torch.equal(outputs(model), outputs(plain))
    train(model, "first", range(3, 5))
    assert handle.step == 5


def test_merging_gives_the_outputs_of_plain_lora():
    model, plain, handle = twins()
    expected = outputs(plain)
    model.merge_adapter()
    assert torch.allclose(outputs(model), expected, atol=1e-6)
    model.unmerge_adapter()
    assert torch.allclose(outputs(model), expected, atol=1e-6)
    train(model, "first", range(3, 4))
    assert handle.step == 4

    model, plain, _ = twins()
    merged, expected = model.merge_and_unload(), plain.merge_and_unload()
    assert torch.equal(outputs(merged), outputs(expected))
    assert not any("lora" in name for name, _ in merged.named_modules())


def test_deleting_an_adapter_leaves_the_others_to_their_method():
    model, _, handle = twins()
    model.add_adapter("third", tiny.lora_config(NAME))
    rmlora.attach(model, METHOD, adapter_name="third")
    model.delete_adapter("second")
    train(model, "first", range(3, 5))
    assert handle.step == 5
    model.delete_adapter("third")
    train(model, "first", range(5, 6))
    assert handle.step == 6
    assert [handle.adapter for handle in rmlora.attached(model)] == ["first"]


def test_each_adapter_is_saved_and_loads_into_plain_peft(tmp_path):
    model, _, _ = twins()
    second = rmlora.attach(model, METHOD, adapter_name="second")
    train(model, "second")
    assert second.step == 3
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    plain = PeftModel.from_pretrained(tiny.TINY[NAME].build(), tmp_path / "first", adapter_name="first")
    plain.load_adapter(tmp_path / "second", adapter_name="second")
    for name in ("first", "second"):
        model.set_adapter(name)
        plain.set_adapter(name)
        assert torch.allclose(outputs(model), outputs(plain), atol=1e-6)


def test_an_adapter_made_by_inject_without_a_peft_model_is_found():
    from peft import inject_adapter_in_model

    torch.manual_seed(0)
    base = tiny.TINY[NAME].build()
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["q_proj"]), base)
    named = {pair.name for pair in rmlora.attach(base, METHOD).pairs}
    wrapped = get_peft_model(tiny.TINY[NAME].build(), LoraConfig(r=4, target_modules=["q_proj"]))
    assert named == {pair.name for pair in rmlora.attach(wrapped, METHOD).pairs}


def test_transformers_own_add_adapter_trains_and_saves(tmp_path):
    torch.manual_seed(0)
    base = tiny.TINY[NAME].build()
    base.add_adapter(LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    handle = rmlora.attach(base, METHOD)
    tiny.train(base, NAME, tiny.adamw(base))
    assert handle.step == 4
    base.save_pretrained(tmp_path)
    torch.manual_seed(0)
    plain = PeftModel.from_pretrained(tiny.TINY[NAME].build(), tmp_path)
    assert torch.allclose(outputs(base), outputs(plain), atol=1e-6)
