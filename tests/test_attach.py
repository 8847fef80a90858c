"""attach, and the handle it returns."""

import copy

import pytest
import torch
from torch import nn

import rmlora
from rmlora.errors import AttachError, RmloraWarning
from tests import toys
from tests.reference import rm_lora as slow


def test_len_names_and_scale():
    model = toys.make_model(r=4)
    handle = rmlora.attach(model, rmlora.rm_lora())
    assert len(handle) == 2
    assert [pair.name for pair in handle.pairs] == ["0", "2"]
    assert handle.pairs[0].scale == 2.0
    assert handle.pairs[0].A.shape == (4, toys.D_IN)
    assert handle.pairs[0].B.shape == (toys.HIDDEN, 4)
    assert "2 pairs" in repr(handle)
    assert handle.late == {}


def test_metrics_are_the_reference_penalty_per_module_and_summed():
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.rm_lora(1e-2, 3))
    toys.train(model, steps=4)
    metrics = handle.metrics()
    expected = {pair.name: slow.penalty_of_paper(pair.A, pair.B).item() for pair in handle.pairs}
    overlap = {pair.name: slow.off_diagonal_penalty(pair.A, pair.B).item() for pair in handle.pairs}
    for name, values in metrics["modules"].items():
        assert values["penalty"] == pytest.approx(expected[name])
        assert values["residual_A"] + values["residual_B"] == pytest.approx(expected[name])
        assert values["overlap_A"] + values["overlap_B"] == pytest.approx(overlap[name])
        assert (values["kept"], values["r"]) == (3, 8)
    assert metrics["penalty"] == pytest.approx(sum(expected.values()))
    assert metrics["kept"] == 6
    assert metrics["step"] == 4


def test_detach_leaves_plain_lora_and_forgets():
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.rm_lora(1e-2, 3))
    toys.train(model, steps=2)
    handle.detach()
    assert not handle.is_attached
    assert rmlora.attached(model) == []
    assert "save_pretrained" not in vars(model)
    assert all(type(m) is nn.Linear for pair in handle.pairs for m in pair.factor_modules)
    twin = toys.make_model()
    twin.load_state_dict(model.state_dict())
    toys.train(model, steps=3)
    toys.train(twin, steps=3)
    toys.assert_equal_weights(toys.weights(twin), toys.weights(model))
    with pytest.raises(AttachError, match="already detached"):
        handle.detach()


def test_the_context_manager_detaches():
    model = toys.make_model()
    with rmlora.attach(model, rmlora.rm_lora()) as handle:
        toys.train(model, steps=1)
        assert handle.is_attached
    assert not handle.is_attached


def test_a_dropped_handle_changes_nothing():
    model, kept = toys.make_model(), toys.make_model()
    handle = rmlora.attach(kept, rmlora.rm_lora(1e-2, 3))
    rmlora.attach(model, rmlora.rm_lora(1e-2, 3))
    toys.train(model, steps=3)
    toys.train(kept, steps=3)
    assert rmlora.attached(model)[0].step == handle.step == 3
    toys.assert_equal_weights(toys.weights(kept), toys.weights(model))


def test_a_method_that_never_stepped_warns_when_saved_or_detached(tmp_path):
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.rm_lora())
    with pytest.warns(RmloraWarning, match="never saw an optimizer step"):
        model.save_pretrained(tmp_path)
    with pytest.warns(RmloraWarning, match="never saw an optimizer step"):
        handle.detach()


def test_attaching_twice_is_refused():
    model = toys.make_model()
    rmlora.attach(model, rmlora.rm_lora())
    with pytest.raises(AttachError, match="already trains by a method"):
        rmlora.attach(model, rmlora.lora())


def test_a_model_without_lora_says_what_was_found():
    with pytest.raises(AttachError, match=r"found a plain Sequential without PEFT layers; wrap the model first"):
        rmlora.attach(toys.make_base(), rmlora.rm_lora())


def test_an_unknown_adapter_lists_those_there_are():
    with pytest.raises(AttachError, match=r'no LoRA adapter "mine" on this model; it has \[\'default\'\]'):
        rmlora.attach(toys.make_model(), rmlora.rm_lora(), adapter_name="mine")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: setattr(p, "ds_id", 3), "DeepSpeed ZeRO"),
        (lambda p: setattr(p, "_hp_mapping", object()), "DeepSpeed ZeRO"),
        (lambda p: setattr(p, "_is_flat_param", True), "FSDP1 flattens"),
    ],
)
def test_flattened_parameters_are_refused_by_name(spoil, message):
    model = toys.make_model()
    spoil(model.base_model.model[0].lora_A["default"].weight)
    with pytest.raises(AttachError, match=message) as raised:
        rmlora.attach(model, rmlora.rm_lora())
    assert "use DDP" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_attaching_to_the_root_or_to_peft_inside_it_gives_the_same_masks():
    model = toys.make_model()
    wrapper = nn.ModuleDict({"inner": model})
    inside = rmlora.attach(toys.make_model(), rmlora.gm_lora(3))
    outside = rmlora.attach(wrapper, rmlora.gm_lora(3))
    assert inside.kept() == outside.kept()


def test_switching_layers_to_eval_and_back_keeps_training_exact():
    straight, switched = toys.make_model(), toys.make_model()
    for model in (straight, switched):
        rmlora.attach(model, rmlora.rm_lora(1e-2, 3))

    def evaluate(step):
        switched.eval()
        with torch.no_grad():
            switched(toys.batch(500 + step)[0])
        switched.train()

    toys.train(straight, steps=4)
    toys.train(switched, steps=4, watch=evaluate)
    toys.assert_equal_weights(toys.weights(straight), toys.weights(switched))


def test_an_adapter_deleted_and_made_anew_can_be_attached_again():
    from peft import LoraConfig

    model = toys.make_model()
    model.add_adapter("other", LoraConfig(r=4, target_modules=["0"]))
    rmlora.attach(model, rmlora.rm_lora(), adapter_name="other")
    model.delete_adapter("other")
    assert rmlora.attached(model) == []
    model.add_adapter("other", LoraConfig(r=2, target_modules=["0"]))
    assert len(rmlora.attach(model, rmlora.rm_lora(), adapter_name="other")) == 1


def test_an_optimizer_resumed_in_the_same_process_can_be_bound():
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.rm_lora(1e-2, 3))
    optimizer = toys.make_optimizer(model)
    toys.train(model, optimizer, steps=3)
    state, at_three = copy.deepcopy(optimizer.state_dict()), toys.weights(model)
    toys.train(model, optimizer, steps=2, start=3)
    straight = toys.weights(model)
    model.load_state_dict(at_three)
    again = toys.make_optimizer(model)
    again.load_state_dict(state)
    handle.bind(again)
    assert handle.step == 3
    toys.train(model, again, steps=2, start=3)
    toys.assert_equal_weights(straight, toys.weights(model))
