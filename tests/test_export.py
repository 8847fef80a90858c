"""Law 4: what is saved loads in plain PEFT, in an interpreter that cannot import rmlora, with the same outputs."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import rmlora
from tests import tiny

METHOD = rmlora.rm_lora(weight=1e-2, directions=2)

# Runs in a fresh interpreter: every folder holds base/, adapter/, batch and the outputs before saving.
READER = textwrap.dedent("""
    import json, sys
    from pathlib import Path

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "rmlora":
                raise ImportError("rmlora is not here")

    sys.meta_path.insert(0, Blocked())
    try:
        import rmlora
    except ImportError:
        pass
    else:
        sys.exit("rmlora could be imported, so this proves nothing")

    import torch, transformers
    from peft import PeftModel
    from safetensors.torch import load_file

    worst = {}
    for folder in map(Path, sys.argv[1:]):
        architecture = json.loads((folder / "base/config.json").read_text())["architectures"][0]
        base = getattr(transformers, architecture).from_pretrained(folder / "base")
        model = PeftModel.from_pretrained(base, folder / "adapter").eval()
        with torch.no_grad():
            logits = model(**load_file(folder / "batch.safetensors")).logits
        expected = load_file(folder / "logits.safetensors")["logits"]
        worst[folder.name] = (logits - expected).abs().max().item()
    print(json.dumps(worst))
""")


def write_base(name, folder):
    torch.manual_seed(0)
    tiny.TINY[name].build().save_pretrained(folder / "base")


def write_trained(name, folder, config=None):
    """Train one architecture, save base, adapter, a batch and its outputs; return how far training moved them."""
    write_base(name, folder)
    model = tiny.adapted(name, config)
    batch = {key: value for key, value in tiny.inputs(name, seed=9).items() if key != "labels"}
    before = outputs(model, batch)
    if config is None:
        rmlora.attach(model, METHOD)
    tiny.train(model, name, tiny.adamw(model))
    model.save_pretrained(folder / "adapter")
    save_file(batch, folder / "batch.safetensors")
    after = outputs(model, batch)
    save_file({"logits": after}, folder / "logits.safetensors")
    return (after - before).abs().max().item()


@torch.no_grad()
def outputs(model, batch):
    return model.eval()(**batch).logits.contiguous()


def rm_lora_config(name):
    return rmlora.RMLoraConfig(**tiny.lora_settings(name), weight=1e-2, directions=2)


def test_semantic_router_2394_adapters_of_every_architecture_load_where_rmlora_cannot_be_imported(tmp_path):
    folders = {name: tmp_path / name for name in ("gpt2", "deberta", "vit", "llama")}
    moved = {name: write_trained(name, folder) for name, folder in folders.items()}
    folders["config"] = tmp_path / "config"
    moved["config"] = write_trained("deberta", folders["config"], rm_lora_config("deberta"))
    assert min(moved.values()) > 1e-3  # an adapter that did nothing would load with equal outputs, too

    run = subprocess.run([sys.executable, "-c", READER, *map(str, folders.values())], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    worst = json.loads(run.stdout.splitlines()[-1])
    assert worst.keys() == folders.keys()
    assert max(worst.values()) <= 1e-6, worst


@pytest.mark.parametrize("name", ["gpt2", "deberta", "vit", "llama"])
def test_llama_cpp_11554_the_saved_folder_is_the_one_plain_peft_writes(name, tmp_path):
    plain = tiny.adapted(name)
    plain.save_pretrained(tmp_path / "plain")
    model = tiny.adapted(name)
    rmlora.attach(model, METHOD)
    tiny.train(model, name, tiny.adamw(model), range(1))
    model.save_pretrained(tmp_path / "ours")

    config = json.loads((tmp_path / "ours/adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config == json.loads((tmp_path / "plain/adapter_config.json").read_text())
    files = [sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("ours", "plain")]
    assert files[0] == files[1]
    ours, theirs = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("ours", "plain"))
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_what_a_config_writes_is_plain_beside_one_file_of_its_own(tmp_path):
    tiny.adapted("deberta").save_pretrained(tmp_path / "plain")
    model = tiny.adapted("deberta", rm_lora_config("deberta"))
    tiny.train(model, "deberta", tiny.adamw(model), range(1))
    model.save_pretrained(tmp_path / "ours")

    ours, plain = (json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in ("ours", "plain"))
    for config in (ours, plain):
        config["target_modules"] = sorted(config["target_modules"])
    assert ours == plain
    more = {path.name for path in (tmp_path / "ours").iterdir()} - {p.name for p in (tmp_path / "plain").iterdir()}
    assert more == {"rmlora_config.json"}


def test_the_new_pooler_of_deberta_is_trained_and_saved(tmp_path):
    model = tiny.adapted("deberta")
    rmlora.attach(model, METHOD)
    start = tiny.learnt(model)
    tiny.train(model, "deberta", tiny.adamw(model))
    model.save_pretrained(tmp_path / "adapter")

    saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
    for live in ("pooler.modules_to_save.default.dense.weight", "classifier.modules_to_save.default.weight"):
        live = f"base_model.model.{live}"
        stored = saved[live.replace(".modules_to_save.default", "")]
        assert torch.equal(stored, model.get_parameter(live))
        assert not torch.equal(stored, start[live])


def test_a_reloaded_adapter_trains_on_once_attached_again(tmp_path):
    write_trained("llama", tmp_path)
    base = tiny.llama().from_pretrained(tmp_path / "base")
    model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    handle = rmlora.attach(model, METHOD)
    before = tiny.learnt(model)
    tiny.train(model, "llama", tiny.adamw(model), range(2))
    assert handle.step == 2
    assert tiny.distance(before, tiny.learnt(model)) > 1e-3
