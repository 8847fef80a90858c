"""AdaLoRA saved as plain LoRA, exported pruned, resumed from files, merged, and trained by a trainer."""

import pytest
import torch
from peft import AdaLoraConfig, PeftModel
from transformers import Trainer, TrainingArguments

import rmlora
from rmlora.errors import StateError
from rmlora.saving import STATE_FILE
from rmlora.transforms import budget_at
from tests import tiny, toys


def outputs(model, dtype=torch.float64):
    with torch.no_grad():
        return model.eval()(toys.batch(77, dtype)[0])


def trained(steps=9, dtype=torch.float64):
    model = toys.make_model(adapts="ADALORA", dtype=dtype)
    handle = rmlora.attach(model, rmlora.adalora())
    toys.train(model, steps=steps, dtype=dtype)
    return model, handle


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_export_drops_pruned_triplets_and_gives_equal_outputs_in_plain_peft(dtype, atol, tmp_path):
    model, handle = trained(dtype=dtype)
    exported = handle.export(tmp_path / "pruned")
    assert exported.kept == handle.metrics()["open"] == 10
    assert exported.before == {"0": 8, "2": 8}
    loaded = PeftModel.from_pretrained(toys.make_base(dtype), tmp_path / "pruned", autocast_adapter_dtype=False)
    assert loaded.peft_config["default"].peft_type == "LORA"
    torch.testing.assert_close(outputs(loaded, dtype), outputs(model, dtype), rtol=0, atol=atol)


def test_an_adapter_saved_by_peft_in_its_own_form_exports_the_same(tmp_path):
    model, handle = trained()
    handle.detach()
    model.save_pretrained(tmp_path / "adalora")
    exported = rmlora.export_pruned(tmp_path / "adalora", tmp_path / "pruned")
    assert exported.kept == 10
    loaded = PeftModel.from_pretrained(toys.make_base(), tmp_path / "pruned", autocast_adapter_dtype=False)
    torch.testing.assert_close(outputs(loaded), outputs(model), rtol=0, atol=1e-12)


def test_training_goes_on_from_the_files_bit_for_bit(tmp_path):
    straight, _ = trained(steps=11)
    first = toys.make_model(adapts="ADALORA")
    rmlora.attach(first, rmlora.adalora())
    optimizer = toys.make_optimizer(first)
    toys.train(first, optimizer, steps=6)
    live = toys.weights(first)
    first.save_pretrained(tmp_path)
    toys.assert_equal_weights(live, toys.weights(first))
    assert (tmp_path / STATE_FILE).is_file()
    assert not list(tmp_path.glob(".*"))

    second = toys.make_model(adapts="ADALORA")
    handle = rmlora.attach(second, rmlora.adalora())
    with torch.no_grad():
        for name, parameter in second.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(1.0)
    second.load_adapter(tmp_path, "default", is_trainable=True)
    toys.assert_equal_weights(live, toys.weights(second))
    resumed = toys.make_optimizer(second)
    resumed.load_state_dict(optimizer.state_dict())
    toys.train(second, resumed, steps=5, start=6)
    assert handle.step == 11
    toys.assert_equal_weights(toys.weights(straight), toys.weights(second))
    (tmp_path / STATE_FILE).unlink()
    with pytest.raises(StateError, match="from which triplets cannot be read"):
        second.load_adapter(tmp_path, "default")


def test_merging_keeps_the_outputs():
    model, _ = trained()
    before = outputs(model)
    torch.testing.assert_close(outputs(model.merge_and_unload()), before, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_hf_trainer_allocates_without_a_callback(tmp_path):
    config = AdaLoraConfig(init_r=4, target_r=2, target_modules=["query", "value"], total_step=6, tinit=1, tfinal=2)
    model = tiny.adapted("bert", config)
    handle = rmlora.attach(model, rmlora.adalora())
    rows = [{key: value[0] for key, value in tiny.inputs("bert", 1, seed).items()} for seed in range(24)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        report_to=[], save_strategy="no", use_cpu=True, learning_rate=1e-2, disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows).train()
    assert handle.step == 6
    assert handle.metrics()["open"] == budget_at(4, 16, 8, 6, 1, 2) == 8
