"""The `authors` preset against a slow transcription of the description of their code."""

import pytest
import torch

import rmlora
from tests import toys
from tests.reference import rm_lora as slow


def train_slowly(kept_per_step, coefficient, max_norm, freeze_head=False):
    model = toys.make_model(dropout=0.0)
    optimizer = toys.make_optimizer(model)
    parameters = dict(model.named_parameters())
    pairs = [
        (name, *(parameters[f"base_model.model.{name}.lora_{side}.default.weight"] for side in "AB"))
        for name in ("0", "2")
    ]
    for step, kept in enumerate(kept_per_step):
        x, y = toys.batch(step)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        if freeze_head and step > 0:
            for name, parameter in parameters.items():
                if parameter.requires_grad and "lora_" not in name:
                    parameter.register_hook(torch.zeros_like)
        slow.authors_step(model, pairs, loss, optimizer, step, coefficient, max_norm, kept)
    return model


def train_attached(method, steps=6):
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, method)
    kept = []
    toys.train(model, steps=steps, watch=lambda step: kept.append(handle.kept()))
    return model, kept


@pytest.mark.parametrize("sharing", ["shared", "independent"])
@pytest.mark.parametrize("frozen_head", [False, True])
def test_authors_preset_is_the_slow_transcription(sharing, frozen_head):
    method = rmlora.rm_lora(preset="authors", sharing=sharing, frozen_head=frozen_head)
    model, kept = train_attached(method)
    assert len(kept[1]["0"][0]) == 4
    reference = train_slowly(kept, coefficient=0.1, max_norm=None, freeze_head=frozen_head)
    for name, value in toys.weights(reference).items():
        torch.testing.assert_close(toys.weights(model)[name], value, rtol=1e-9, atol=1e-11)


def test_the_frozen_head_is_off_unless_asked_for():
    heads = {}
    for frozen in (False, True):
        model, _ = train_attached(rmlora.rm_lora(preset="authors", frozen_head=frozen), steps=4)
        heads[frozen] = toys.weights(model)["base_model.model.4.modules_to_save.default.weight"]
    plain = toys.make_model(dropout=0.0)
    toys.train(plain, steps=1)
    after_one = toys.weights(plain)["base_model.model.4.modules_to_save.default.weight"]
    assert not torch.equal(heads[False], heads[True])
    assert not torch.equal(heads[True], after_one), "momentum still moves a head whose gradient is zero"


def test_with_clipping_in_the_chain_penalty_and_task_are_clipped_before_the_mask():
    """Deviation kept visible: the chain's norm is over the adapter, the authors' over all that is trained."""
    method = rmlora.rm_lora(preset="authors", max_norm=0.05)
    names = [type(link).__name__ for link in method.links]
    assert names == ["AddOrthogonality", "ClipByGlobalNorm", "MaskDirections"]
    model, kept = train_attached(method)
    torch.manual_seed(0)
    reference = toys.make_model(dropout=0.0)
    optimizer = toys.make_optimizer(reference)
    handle = rmlora.attach(reference, rmlora.lora())
    for step, sets in enumerate(kept):
        x, y = toys.batch(step)
        pairs = [(pair.name, *pair.parameters) for pair in handle.pairs]
        loss = torch.nn.functional.cross_entropy(reference(x), y)
        (loss + 0.1 * slow.penalty_of_authors([(A, B) for _, A, B in pairs])).backward()
        torch.nn.utils.clip_grad_norm_([p for _, A, B in pairs for p in (A, B)], 0.05)
        if step > 0:
            for name, A, B in pairs:
                slow.mask_gradients(A.grad, B.grad, *sets[name])
        optimizer.step()
        optimizer.zero_grad()
    for name, value in toys.weights(reference).items():
        torch.testing.assert_close(toys.weights(model)[name], value, rtol=1e-8, atol=1e-10)
