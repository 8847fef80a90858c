"""Links that act in the forward pass: gates, draws, folding, saving, resuming."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import rmlora
from rmlora.errors import AttachError, StateError
from rmlora.saving import STATE_FILE
from tests import toys
from tests.dummies import DropInputs, GateDirections


def test_a_gate_acts_in_the_forward_pass_and_fold_gives_the_same_outputs():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.chain(GateDirections(), rmlora.AddOrthogonality(1e-3)))
    toys.train(model, steps=4)
    gated = toys.outputs(model)
    folded = handle.fold()
    live = {pair.name: (pair.A.detach().clone(), pair.B.detach().clone()) for pair in handle.pairs}
    assert any(not torch.equal(folded[name][0], A) for name, (A, _) in live.items())
    for pair in handle.pairs:
        assert torch.equal(pair.A, live[pair.name][0])
    handle.detach()
    torch.testing.assert_close(toys.outputs(model), gated, rtol=0, atol=1e-12)
    assert type(model.base_model.model[0].lora_A["default"]) is torch.nn.Linear


def test_a_gated_adapter_is_saved_folded_without_touching_the_live_factors(tmp_path):
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, GateDirections())
    toys.train(model, steps=3)
    before = toys.weights(model)
    model.save_pretrained(tmp_path)
    toys.assert_equal_weights(before, toys.weights(model))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert not torch.equal(saved["base_model.model.0.lora_A.weight"], handle.pairs[0].A)
    reloaded = PeftModel.from_pretrained(toys.make_base(), tmp_path, autocast_adapter_dtype=False)
    torch.testing.assert_close(toys.outputs(reloaded), toys.outputs(model), rtol=0, atol=1e-12)
    assert (tmp_path / STATE_FILE).is_file()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_gated_adapter_resumes_from_the_state_beside_it(tmp_path):
    straight = toys.make_model()
    rmlora.attach(straight, GateDirections())
    toys.train(straight, steps=7)

    first = toys.make_model()
    rmlora.attach(first, GateDirections())
    optimizer = toys.make_optimizer(first)
    toys.train(first, optimizer, steps=3)
    first.save_pretrained(tmp_path)

    second = toys.make_model(seed=5)
    handle = rmlora.attach(second, GateDirections())
    second.base_model.model.load_state_dict(toys.make_base().state_dict(), strict=False)
    fresh = toys.make_model()
    second.load_state_dict({k: v for k, v in fresh.state_dict().items() if "lora_" not in k}, strict=False)
    second.load_adapter(tmp_path, "default", is_trainable=True)
    resumed = toys.make_optimizer(second)
    resumed.load_state_dict(optimizer.state_dict())
    toys.train(second, resumed, steps=4, start=3)
    assert handle.step == 7
    toys.assert_equal_weights(toys.weights(straight), toys.weights(second))
    assert torch.equal(toys.outputs(straight), toys.outputs(second))


def test_state_beside_another_adapter_file_is_refused(tmp_path):
    model = toys.make_model()
    rmlora.attach(model, GateDirections())
    toys.train(model, steps=2)
    model.save_pretrained(tmp_path)
    state = (tmp_path / STATE_FILE).read_bytes()
    toys.train(model, steps=1, start=2)
    model.save_pretrained(tmp_path)
    (tmp_path / STATE_FILE).write_bytes(state)
    with pytest.raises(StateError, match="does not belong to adapter_model"):
        model.load_adapter(tmp_path, "default")
    (tmp_path / STATE_FILE).write_bytes(state[:100])
    with pytest.raises(StateError, match="is damaged"):
        model.load_adapter(tmp_path, "default")


def test_peft_1388_merging_a_gated_adapter_keeps_its_outputs():
    model = toys.make_model(dropout=0.0)
    rmlora.attach(model, GateDirections())
    toys.train(model, steps=3)
    gated = toys.outputs(model)
    torch.testing.assert_close(toys.outputs(model.merge_and_unload()), gated, rtol=0, atol=1e-12)


def test_tensors_of_the_state_travel_with_the_optimizer_in_their_own_dtype():
    first = toys.make_model(dtype=torch.bfloat16, dropout=0.0)
    rmlora.attach(first, GateDirections())
    optimizer = toys.make_optimizer(first)
    toys.train(first, optimizer, steps=1, dtype=torch.bfloat16)
    saved = optimizer.state_dict()
    second = toys.make_model(dtype=torch.bfloat16, dropout=0.0)
    handle = rmlora.attach(second, GateDirections())
    optimizer = toys.make_optimizer(second)
    optimizer.load_state_dict(saved)
    toys.train(second, optimizer, steps=1, start=1, dtype=torch.bfloat16)
    assert handle.step == 2
    assert all((tensors["0/age"] == 514).all() for tensors in handle._binding.state), "257 is not a bfloat16"


def test_nothing_enters_the_optimizer_before_its_first_step():
    model = toys.make_model()
    rmlora.attach(model, GateDirections())
    optimizer = toys.make_optimizer(model)
    toys.compute_gradients(model, 0)
    optimizer.state_dict()
    assert not optimizer.state
    optimizer.step()


def test_forward_draws_change_with_micro_batch_and_replay_under_checkpointing():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, DropInputs())
    DropInputs.drawn.clear()
    x, y = toys.batch(0)
    for _ in range(2):
        hidden = torch.utils.checkpoint.checkpoint(lambda x: model(x), x, use_reentrant=False)
        torch.nn.functional.cross_entropy(hidden, y).backward()
    drawn = DropInputs.drawn
    forward = [draw for draw in drawn if draw[0] == "0"]
    assert len(forward) >= 3
    by_microbatch = {micro: {d[3] for d in forward if d[2] == micro} for micro in (0, 1)}
    assert len(by_microbatch[1]) == 1, "recomputation sees the draw of its own pass"
    assert by_microbatch[0] != by_microbatch[1]
    assert handle.step == 0


def test_outputs_and_inputs_hooks_fold():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, DropInputs())
    toys.train(model, steps=2)
    gated = toys.outputs(model)
    handle.detach()
    torch.testing.assert_close(toys.outputs(model), gated, rtol=0, atol=1e-12)


def test_forward_hooks_refuse_variants_with_another_forward_pass():
    model = toys.make_model(use_dora=True)
    with pytest.raises(AttachError, match="DoraLinearVariant, whose forward pass is not"):
        rmlora.attach(model, GateDirections())
    assert type(model.base_model.model[0].lora_A["default"]) is torch.nn.Linear
