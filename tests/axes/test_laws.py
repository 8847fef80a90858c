"""The laws of the mask, over every tuner that has an axis of directions."""

import copy

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import rmlora
from tests import toys
from tests.axes import adapters

pytestmark = pytest.mark.filterwarnings("ignore")

WHOLE = {"vera": "vera_lambda_b", "dora": "lora_magnitude_vector", "p-tuning": "mlp_head", "lokr-conv": "lokr_w1"}


def gradients(name, model, step):
    model.zero_grad()
    adapters.compute_loss(name, model, step).backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", adapters.NAMES)
def test_exactly_the_chosen_directions_get_the_gradient_they_would_have_had(name):
    model, plain = adapters.make_model(name), adapters.make_model(name)
    handle = rmlora.mask_axes(model, directions=0.5, seed=3)
    optimizer = adapters.make_optimizer(model)
    seen = set()
    for step in range(4):
        plain.load_state_dict(model.state_dict())
        expected, kept = gradients(name, plain, step), handle.kept()
        found = gradients(name, model, step)
        assert found.keys() == expected.keys()
        touched = 0
        for key, whole in expected.items():
            masks = [
                adapters.masked(name, axis, key, whole, rows)
                for axis, rows in kept.items()
                if axis == "prompt" or f".{axis.partition('/')[0]}." in key
            ]
            mask = next((mask for mask in masks if mask is not None), None)
            touched += mask is not None
            assert torch.equal(found[key], whole if mask is None else mask), key
            assert found[key].any(), key
        assert touched >= len(kept)
        for axis, size in handle.sizes.items():
            assert len(kept[axis]) == max(1, int(size / 2 + 0.5))
            seen.add((axis, tuple(kept[axis])))
        optimizer.step()
    assert handle.step == 4
    assert len(seen) > len(handle), "masks change from step to step"
    assert any(WHOLE.get(name, "") in key for key in (*handle.whole, ""))


@pytest.mark.parametrize("name", adapters.NAMES)
def test_with_all_kept_it_is_pefts_own_training_bit_for_bit(name):
    plain = adapters.make_model(name)
    adapters.train(name, plain, adapters.make_optimizer(plain), 5)
    model = adapters.make_model(name)
    handle = rmlora.mask_axes(model, directions=1.0)
    adapters.train(name, model, adapters.make_optimizer(model), 5)
    assert handle.step == 5
    toys.assert_equal_weights(toys.weights(plain), toys.weights(model))


@pytest.mark.parametrize("policy", ["gradient", "update"])
@pytest.mark.parametrize("name", adapters.NAMES)
def test_resuming_ends_at_the_bits_of_never_stopping(name, policy):
    mask = {"directions": 0.5, "policy": policy, "resample_steps": 2, "seed": 5}
    straight = adapters.make_model(name)
    rmlora.mask_axes(straight, **mask)
    adapters.train(name, straight, adapters.make_optimizer(straight), 7)

    first = adapters.make_model(name)
    rmlora.mask_axes(first, **mask)
    optimizer = adapters.make_optimizer(first)
    adapters.train(name, first, optimizer, 3)
    saved = copy.deepcopy((first.state_dict(), optimizer.state_dict()))

    second = adapters.make_model(name, seed=1)
    second.load_state_dict(saved[0])
    handle = rmlora.mask_axes(second, **mask)
    optimizer = adapters.make_optimizer(second)
    optimizer.load_state_dict(saved[1])
    adapters.train(name, second, optimizer, 4, start=3)
    assert handle.step == 7
    toys.assert_equal_weights(toys.weights(straight), toys.weights(second))


@pytest.mark.parametrize("name", adapters.NAMES)
def test_accumulation_counts_optimizer_steps(name):
    model = adapters.make_model(name)
    handle = rmlora.mask_axes(model)
    optimizer = adapters.make_optimizer(model)
    seen = []
    for step in range(4):
        kept = handle.kept()
        seen.append(kept)
        for micro in range(3):
            adapters.compute_loss(name, model, 3 * step + micro).backward()
            assert handle.kept() == kept
        optimizer.step()
        optimizer.zero_grad()
    assert handle.step == 4
    assert any(kept != seen[0] for kept in seen)


@pytest.mark.parametrize("name", adapters.NAMES)
def test_the_file_is_pefts_own_and_reloads(name, tmp_path):
    adapters.make_model(name).save_pretrained(tmp_path / "plain")
    model = adapters.make_model(name)
    rmlora.mask_axes(model)
    adapters.train(name, model, adapters.make_optimizer(model), 3)
    model.save_pretrained(tmp_path / "masked")
    plain, masked = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("plain", "masked"))
    assert {key: value.shape for key, value in plain.items()} == {key: value.shape for key, value in masked.items()}
    assert {p.name for p in (tmp_path / "plain").iterdir()} == {p.name for p in (tmp_path / "masked").iterdir()}
    again = PeftModel.from_pretrained(adapters.make_base(name), tmp_path / "masked", autocast_adapter_dtype=False)
    with torch.no_grad():
        both = [adapters.compute_loss(name, m.double().eval(), 50) for m in (model, again)]
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", adapters.NAMES)
def test_under_policy_update_masked_directions_stay_where_they_are(name):
    model = adapters.make_model(name)
    handle = rmlora.mask_axes(model, policy="update")
    optimizer = adapters.make_optimizer(model)
    for step in range(3):
        kept, before = handle.kept(), {key: p.detach().clone() for key, p in model.named_parameters()}
        adapters.train(name, model, optimizer, 1, start=step)
        for key, parameter in model.named_parameters():
            moved = parameter.detach() - before[key]
            for axis, rows in kept.items():
                if axis == "prompt" or f".{axis.partition('/')[0]}." in key:
                    mask = adapters.masked(name, axis, key, moved, rows)
                    assert mask is None or torch.equal(moved, mask), key
        assert handle.step == step + 1
