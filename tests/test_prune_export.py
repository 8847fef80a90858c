"""Exporting without directions that add nothing: equal outputs in plain PEFT, ranks and scales in patterns."""

import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

import rmlora
from rmlora.analysis.adapters import inspect_adapter
from rmlora.errors import AdapterError
from rmlora.prune_export import with_ranks
from tests import toys


class Nested(nn.Module):
    """Modules whose names are tails of one another."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(6, 6)
        self.deep = nn.Module()
        self.deep.q = nn.Linear(6, 6)
        self.conv = nn.Conv1d(2, 4, 3)
        self.words = nn.Embedding(5, 6)

    def forward(self, ids):
        x = self.q(self.words(ids))
        return self.conv(self.deep.q(x).view(len(x), 2, -1)) + x.mean()


NESTED = {"target_modules": ["q", "conv", "words"], "r": 4, "lora_alpha": 6, "init_lora_weights": False}


def nested(dtype=torch.float64, **changes):
    torch.manual_seed(0)
    config = LoraConfig(**(NESTED | changes))
    return get_peft_model(Nested(), config, autocast_adapter_dtype=False).to(dtype)


def shut(model, closed):
    """Zero some directions: rows of A for even ones, columns of B for odd ones."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for module, directions in closed.items():
                if f"base_model.model.{module}.lora_" in name:
                    is_A = "_A" in name
                    for i in directions:
                        if is_A and i % 2 == 0:
                            parameter[i] = 0.0
                        elif not is_A and i % 2 == 1:
                            parameter[:, i] = 0.0


def reloaded(folder, dtype):
    torch.manual_seed(0)
    return PeftModel.from_pretrained(Nested().to(dtype), folder, autocast_adapter_dtype=False).eval()


CLOSED = {"q": [0, 3], "deep.q": [], "conv": [1, 2, 3], "words": [0, 1, 2, 3]}
IDS = torch.tensor([0, 1, 2, 3, 4])


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_a_pruned_adapter_gives_equal_outputs_in_plain_peft(rslora, dtype, atol, tmp_path):
    model = nested(dtype, use_rslora=rslora)
    shut(model, CLOSED)
    model.save_pretrained(tmp_path / "whole")
    pruned = rmlora.export_pruned(tmp_path / "whole", tmp_path / "out" / "pruned")
    assert pruned.ranks == {"q": 2, "deep.q": 4, "conv": 1, "words": 1}
    assert set(pruned.before.values()) == {4}
    assert pruned.silent == ("words",)
    assert pruned.kept == 7
    loaded = reloaded(pruned.folder, dtype)
    torch.testing.assert_close(loaded(IDS), model.eval()(IDS), rtol=0, atol=atol)
    for name in ("q", "deep.q", "conv", "words"):
        layer, whole = (m.get_submodule(f"base_model.model.{name}") for m in (loaded, model))
        assert layer.r["default"] == pruned.ranks[name]
        assert layer.scaling["default"] == whole.scaling["default"], "exactly, not nearly"
    assert not [path for path in (tmp_path / "out").iterdir() if path.name != "pruned"]


def test_patterns_that_were_there_are_kept_and_survive_pefts_own_saving(tmp_path):
    model = nested(rank_pattern={"deep.q": 2}, alpha_pattern={"conv": 5})
    shut(model, {"q": [0]})
    model.save_pretrained(tmp_path / "whole")
    pruned = rmlora.export_pruned(tmp_path / "whole", tmp_path / "pruned")
    assert pruned.ranks == {"q": 3, "deep.q": 2, "conv": 4, "words": 4}
    loaded = reloaded(tmp_path / "pruned", torch.float64)
    torch.testing.assert_close(loaded(IDS), model.eval()(IDS), rtol=0, atol=1e-12)
    assert {row.name: row.r for row in inspect_adapter(tmp_path / "pruned").modules} == pruned.ranks


def test_nothing_to_drop_writes_the_same_adapter(tmp_path):
    model = nested()
    model.save_pretrained(tmp_path / "whole")
    rmlora.export_pruned(tmp_path / "whole", tmp_path / "same")
    first, second = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("whole", "same"))
    assert first == second
    tensors = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "same")]
    toys.assert_equal_weights(*tensors)


@pytest.mark.parametrize("rank", [1, 2, 3, 5, 7, 11, 23])
@pytest.mark.parametrize("is_root", [False, True])
def test_the_alpha_written_divides_back_to_the_scale(rank, is_root):
    for alpha, r in ((16, 8), (32, 12), (1, 3), (7, 11)):
        scale = alpha / (math.sqrt(r) if is_root else r)
        config = {"peft_type": "LORA", "r": r, "lora_alpha": alpha, "use_rslora": is_root}
        patterned = with_ranks(config, {"m": (rank, scale)})
        written = patterned["alpha_pattern"].get("m", alpha)
        assert written / (math.sqrt(rank) if is_root else rank) == pytest.approx(scale, rel=2e-16, abs=0)


def test_sora_trained_until_modules_fall_silent_is_reported_and_exported(tmp_path):
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.sora(lambda step: 0.0 if step < 5 else (9.0 if step == 6 else 2e-2)))
    toys.train(model, steps=7)
    metrics = handle.metrics()
    assert (metrics["open"], metrics["silent"]) == (0, 2)
    assert metrics["modules"]["0"]["silent"] == 1
    toys.train(model, steps=4, start=7)
    model.save_pretrained(tmp_path / "whole")
    pruned = rmlora.export_pruned(tmp_path / "whole", tmp_path / "pruned")
    assert pruned.kept == handle.metrics()["open"]
    loaded = PeftModel.from_pretrained(toys.make_base(), tmp_path / "pruned", autocast_adapter_dtype=False).eval()
    x, _ = toys.batch(3)
    torch.testing.assert_close(loaded(x), model.eval()(x), rtol=0, atol=1e-12)


def test_sora_gates_that_shut_some_directions_export_the_rest(tmp_path):
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.sora(2e-2))
    toys.train(model, steps=40)
    assert 0 < handle.metrics()["open"] < 16
    exported = handle.export(tmp_path / "pruned")
    assert sum(exported.ranks.values()) - len(exported.silent) == handle.metrics()["open"]
    loaded = PeftModel.from_pretrained(toys.make_base(), tmp_path / "pruned", autocast_adapter_dtype=False).eval()
    x, _ = toys.batch(3)
    torch.testing.assert_close(loaded(x), model.eval()(x), rtol=0, atol=1e-12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pruned"]


def test_bad_folders_are_refused_and_nothing_is_written(tmp_path):
    model = nested()
    model.save_pretrained(tmp_path / "whole")
    with pytest.raises(AdapterError, match="exists and is not an empty folder"):
        rmlora.export_pruned(tmp_path / "whole", tmp_path / "whole")
    with pytest.raises(AdapterError, match="No adapter folder"):
        rmlora.export_pruned(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="cannot write"):
        rmlora.export_pruned(tmp_path / "whole", tmp_path / "file" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "whole"]


def test_a_pattern_that_names_a_module_in_full_does_not_outlive_its_rank(tmp_path):
    model = toys.make_model(r=4, rank_pattern={"0": 6}, alpha_pattern={"0": 3})
    handle = rmlora.attach(model, rmlora.lora())
    toys.train(model, steps=2)
    with torch.no_grad():
        for pair in handle.pairs:
            pair.parameters[1][:, 2:] = 0.0
    assert handle.export(tmp_path / "pruned").ranks == {"0": 2, "2": 2}
    plain = PeftModel.from_pretrained(toys.make_base(), tmp_path / "pruned", autocast_adapter_dtype=False).double()
    torch.testing.assert_close(toys.outputs(plain), toys.outputs(model), rtol=0, atol=1e-12)


def test_a_rank_pattern_that_names_a_module_in_full_gets_its_new_rank(tmp_path):
    model = toys.make_model(dropout=0.0, rank_pattern={"0": 6, "2": 6}, alpha_pattern={"2": 3})
    with torch.no_grad():
        for layer in (model.base_model.model[0], model.base_model.model[2]):
            layer.lora_B["default"].weight[:, :2].fill_(1.0)
    model.save_pretrained(tmp_path / "whole")
    assert rmlora.export_pruned(tmp_path / "whole", tmp_path / "pruned").ranks == {"0": 2, "2": 2}
    loaded = PeftModel.from_pretrained(toys.make_base(), tmp_path / "pruned", autocast_adapter_dtype=False).eval()
    x, _ = toys.batch(3)
    torch.testing.assert_close(loaded(x), model.eval()(x), rtol=0, atol=1e-12)
