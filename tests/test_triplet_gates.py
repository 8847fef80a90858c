"""LoRA Dropout on AdaLoRA's triplets: columns of A and rows of B left out, values never; saved, merged, detached."""

import copy

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from peft.tuners.adalora.layer import SVDLinear
from torch import nn

import rmlora
from rmlora.errors import AttachError
from tests import toys
from tests.reference.lora_dropout import masked_factors
from tests.transforms.test_drop import SEED, masks_of


def attached(p=0.4, rescale="none", instances=1, **settings):
    model = toys.make_model(adapts="ADALORA", dropout=0.0)
    method = rmlora.chain(rmlora.adalora(), rmlora.lora_dropout(p, rescale=rescale, instances=instances))
    return model, rmlora.attach_replicated(model, method, seed=SEED, **settings)


def slow_output(link, pair, x, rescale, **where):
    A, B = masked_factors(pair.A, pair.B, *masks_of(link, pair, **where), rescale, link.p)
    return pair.layer.base_layer(x) + pair.scale * (x @ A.T * pair.E.view(-1)) @ B.T


@pytest.mark.parametrize("rescale", ["none", "inverted"])
@pytest.mark.parametrize("instances", [1, 2])
def test_outputs_and_gradients_are_those_of_masked_triplets(rescale, instances):
    model, handle = attached(rescale=rescale, instances=instances, outside_loss=True)
    pairs, link = handle.pairs, handle.method.links[-1]
    head = model.base_model.model[4].modules_to_save["default"]
    with torch.no_grad():
        for pair in pairs:
            nn.init.normal_(pair.E)
    x, y = toys.batch(0)
    nn.functional.cross_entropy(model.train()(x), rmlora.repeat_rows(y, instances)).backward()
    learnt = [p for pair in pairs for p in (*pair.parameters, pair.E)]
    found = [p.grad.clone() for p in learnt]
    model.zero_grad()
    for instance in range(instances):
        hidden = torch.tanh(slow_output(link, pairs[0], x, rescale, instance=instance))
        hidden = torch.tanh(slow_output(link, pairs[1], hidden, rescale, instance=instance))
        (nn.functional.cross_entropy(head(hidden), y) / instances).backward()
    for parameter, gradient in zip(learnt, found, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=1e-12)
        assert gradient.any()


def test_without_draws_the_numbers_are_pefts():
    model, handle = attached(rescale="inverted")
    plain = toys.make_model(adapts="ADALORA", dropout=0.0)
    toys.train(model, steps=3)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(toys.outputs(model), toys.outputs(plain))
    with model.disable_adapter(), plain.disable_adapter():
        assert torch.equal(toys.outputs(model), toys.outputs(plain))
    handle.detach()
    assert type(handle.pairs[0].layer) is SVDLinear
    torch.testing.assert_close(toys.outputs(model), toys.outputs(plain), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rescale", ["none", "inverted"])
def test_what_is_saved_merged_and_detached_gives_the_outputs_of_evaluation(rescale, tmp_path):
    model, handle = attached(rescale=rescale)
    toys.train(model, steps=9)
    assert handle.metrics()["open"] == 10, "it still prunes to its budget"
    before = toys.outputs(model)
    live = toys.weights(model)
    model.save_pretrained(tmp_path / "saved")
    handle.export(tmp_path / "pruned")
    toys.assert_equal_weights(live, toys.weights(model))
    for name in ("saved", "pruned"):
        loaded = PeftModel.from_pretrained(toys.make_base(), tmp_path / name, autocast_adapter_dtype=False)
        torch.testing.assert_close(toys.outputs(loaded), before, rtol=0, atol=1e-12)
    model.eval()
    model.merge_adapter()
    torch.testing.assert_close(toys.outputs(model), before, rtol=0, atol=1e-12)
    model.unmerge_adapter()
    copied = copy.deepcopy(model)
    handle.detach()
    torch.testing.assert_close(toys.outputs(model), before, rtol=0, atol=1e-12)
    torch.testing.assert_close(toys.outputs(copied), before, rtol=0, atol=1e-12)


def test_training_goes_on_from_the_files_bit_for_bit(tmp_path):
    straight, _ = attached()
    toys.train(straight, steps=9)
    first, _ = attached()
    optimizer = toys.make_optimizer(first)
    toys.train(first, optimizer, steps=5)
    first.save_pretrained(tmp_path)
    second, handle = attached()
    second.load_adapter(tmp_path, "default", is_trainable=True)
    resumed = toys.make_optimizer(second)
    resumed.load_state_dict(optimizer.state_dict())
    toys.train(second, resumed, steps=4, start=5)
    assert handle.step == 9
    toys.assert_equal_weights(toys.weights(straight), toys.weights(second))


def test_triplets_that_have_no_gated_form_are_refused():
    base = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    model = get_peft_model(base, AdaLoraConfig(**toys.TRIPLETS, init_r=4, target_modules=["0", "2"]))
    with pytest.raises(AttachError, match=r"0 \(SVDConv2d\) does not call modules for A and B"):
        rmlora.attach(model, rmlora.chain(rmlora.adalora(), rmlora.lora_dropout(0.3)))
    assert type(model.base_model.model[2]) is SVDLinear
