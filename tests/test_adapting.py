import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from rmlora.adapting import add_adapter, alpha, check_fits, lora_config, target_modules
from rmlora.config import DataConfig, LoraSettings, RunConfig
from rmlora.config_source import resolve
from rmlora.errors import AdapterError, ConfigError
from rmlora.modeling import Loaded, load_model, new_modules
from rmlora.tasks.data import TaskData, load_data
from tests import runs

SIX = [
    "attention.self.query_proj",
    "attention.self.key_proj",
    "attention.self.value_proj",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]


@pytest.fixture
def data(tmp_path: Path) -> TaskData:
    train, held_out = runs.save_pairs(tmp_path / "data", train=8, held_out=4)
    return load_data(DataConfig(train=str(train), eval=str(held_out)), "text-classification")


def load(folder: Path, data: TaskData, **settings: Any) -> tuple[Loaded, RunConfig]:
    config = resolve({"model": str(folder), **settings})
    return load_model(config, data), config


def test_deberta_gets_its_six_projections_and_a_saved_pooler(tmp_path: Path, data: TaskData) -> None:
    loaded, config = load(runs.save_deberta(tmp_path / "m"), data)
    expected = [f"deberta.encoder.layer.{i}.{name}" for i in range(2) for name in SIX]
    assert target_modules(loaded, config.lora) == expected
    assert sorted(loaded.heads) == sorted(loaded.fresh) == ["classifier", "pooler"]
    model = add_adapter(loaded, config)
    whole = {n.split("model.", 2)[-1] for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n}
    assert whole == {
        f"{module}.modules_to_save.default.{parameter}"
        for module, layer in (("pooler", "dense."), ("classifier", ""))
        for parameter in (f"{layer}weight", f"{layer}bias")
    }
    model.save_pretrained(tmp_path / "a")
    saved = {key.removeprefix("base_model.model.") for key in load_file(tmp_path / "a" / "adapter_model.safetensors")}
    assert {"pooler.dense.weight", "pooler.dense.bias", "classifier.weight", "classifier.bias"} <= saved


def test_lerobot_3551_a_scale_is_the_same_at_every_r(data: TaskData, tmp_path: Path) -> None:
    for lora in ({"r": 2, "scale": 1}, {"r": 4, "scale": 0.5}, {"r": 4, "scale": 3, "use_rslora": True}):
        loaded, config = load(runs.save_bert(tmp_path / "m"), data, lora=lora)
        layer = next(m for m in add_adapter(loaded, config).modules() if isinstance(getattr(m, "scaling", None), dict))
        assert layer.scaling["default"] == pytest.approx(lora["scale"])
    with pytest.raises(ConfigError, match=r"scale=2 at r=4 means lora_alpha=8, but lora_alpha is 4"):
        alpha(LoraSettings(r=4, scale=2, lora_alpha=4))


def test_the_real_deberta_v3_base_has_72_projections() -> None:
    from transformers import AutoModelForSequenceClassification

    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(runs.deberta_config(vocab_size=128100, **sizes))
    loaded = Loaded(model, None, ("pooler", "classifier"), ("pooler", "classifier"), ())
    assert len(target_modules(loaded, LoraSettings())) == 72


def test_a_pretrained_pooler_stays_as_it_is_and_a_missing_one_is_trained(tmp_path: Path, data: TaskData) -> None:
    folder = runs.save_bert(tmp_path / "m")
    loaded, _ = load(folder, data)
    assert (loaded.heads, loaded.fresh, loaded.orphans) == (("classifier",), ("classifier",), ())
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "pooler" not in k}, folder / "model.safetensors", {"format": "pt"})
    loaded, config = load(folder, data)
    assert set(loaded.fresh) == {"bert.pooler", "classifier"}
    assert not [name for name in target_modules(loaded, config.lora) if "pooler" in name]


def test_conv1d_of_gpt2_is_linear_too() -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    model = GPT2ForSequenceClassification(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=8, n_positions=8))
    loaded = Loaded(model, None, ("score",), ("score",), ())
    names = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert target_modules(loaded, LoraSettings()) == [f"transformer.h.{i}.{n}" for i in range(2) for n in names]


def test_targets_are_names_endings_or_an_expression(tmp_path: Path, data: TaskData) -> None:
    loaded, _ = load(runs.save_bert(tmp_path / "m"), data)
    queries = [f"bert.encoder.layer.{i}.attention.self.query" for i in range(2)]
    for wanted in (["query"], "query", r".*\.query", ["attention.self.query"]):
        assert target_modules(loaded, LoraSettings(target_modules=wanted)) == queries
    assert len(target_modules(loaded, LoraSettings(target_modules="query,value"))) == 4
    assert target_modules(loaded, LoraSettings(target_modules=[queries[1]])) == [queries[1]]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["quary"], r'no module matches "quary" \(did you mean "query"\?\)'),
        (r".*\.nothing$", "no module matches"),
        (["query", "nothing"], 'no module matches "nothing"'),
        ("(", "is not a regular expression"),
        (["classifier"], '"classifier" is newly initialised'),
    ],
)
def test_targets_that_make_no_sense_are_refused(tmp_path: Path, data: TaskData, wanted: Any, message: str) -> None:
    loaded, _ = load(runs.save_bert(tmp_path / "m"), data)
    with pytest.raises(ConfigError, match=message):
        target_modules(loaded, LoraSettings(target_modules=wanted))


def test_modules_that_cannot_be_adapted_are_refused_in_one_line(tmp_path: Path, data: TaskData) -> None:
    loaded, config = load(runs.save_bert(tmp_path / "m"), data, lora={"target_modules": ["LayerNorm"]})
    with pytest.raises(ConfigError, match=r"LayerNorm.*not supported") as caught:
        add_adapter(loaded, config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["lora", "rm-lora", "polar"])
def test_more_directions_than_a_layer_has_are_refused(tmp_path: Path, data: TaskData, method: str) -> None:
    loaded, config = load(runs.save_bert(tmp_path / "bert"), data, method=method, lora={"r": 33})
    with pytest.raises(ConfigError, match=r"lora\.r=33, but bert\..+ has a weight of 32 x 32; give at most 32"):
        add_adapter(loaded, config)


def test_the_config_is_plain_peft(tmp_path: Path, data: TaskData) -> None:
    loaded, config = load(runs.save_bert(tmp_path / "m"), data, lora={"r": 4, "lora_dropout": 0.1, "use_rslora": True})
    made = lora_config(loaded, config)
    assert type(made) is LoraConfig
    assert (made.r, made.lora_alpha, made.lora_dropout, made.use_rslora) == (4, 8, 0.1, True)
    assert alpha(LoraSettings(r=3, lora_alpha=1.5)) == 1.5


def test_parameters_no_adapter_could_carry_are_refused(tmp_path: Path, data: TaskData) -> None:
    folder = runs.save_bert(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.0.attention.self.query.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    loaded, config = load(folder, data)
    assert loaded.orphans == ("bert.encoder.layer.0.attention.self.query.bias",)
    with pytest.raises(ConfigError, match=r"has no weights for bert\.encoder\.layer\.0\..*query\.bias"):
        add_adapter(loaded, config)


def test_a_module_with_one_loaded_parameter_is_not_new() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.ModuleDict({"c": nn.Linear(2, 2), "d": nn.Linear(2, 2)})})
    missing = {"b.c.weight", "b.c.bias", "b.d.bias", "gone.weight"}
    assert new_modules(model, missing) == (("b.c",), ("b.d.bias",))


@pytest.fixture
def adapter(tmp_path: Path, data: TaskData) -> Path:
    loaded, config = load(runs.save_bert(tmp_path / "m"), data, lora={"r": 2})
    add_adapter(loaded, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_of_this_base_goes_on(tmp_path: Path, data: TaskData, adapter: Path) -> None:
    before = load_file(adapter / "adapter_model.safetensors")
    loaded, config = load(tmp_path / "m", data, init_adapter=str(adapter))
    model = add_adapter(loaded, config)
    trained = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    factors = {k: v for k, v in before.items() if "lora_" in k}
    assert len(factors) == 24
    assert all(torch.equal(trained[k], v) for k, v in factors.items())
    assert any("modules_to_save" in name for name in trained)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 64}, r'was made for ".*m" and does not fit ".*other": ".*" is \(.*\), lora_A is'),
        ({"layers": 1}, r'does not fit ".*other": the model has no module "bert.encoder.layer.1'),
    ],
)
def test_an_adapter_of_another_base_is_refused(
    tmp_path: Path, data: TaskData, adapter: Path, change: dict, message: str
) -> None:
    loaded, config = load(runs.save_bert(tmp_path / "other", **change), data, init_adapter=str(adapter))
    with pytest.raises(AdapterError, match=message):
        add_adapter(loaded, config)


def test_a_head_of_another_size_is_refused(tmp_path: Path, data: TaskData, adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    weights["base_model.model.classifier.weight"] = torch.zeros(3, 32)
    save_file(weights, adapter / "adapter_model.safetensors")
    loaded, _ = load(tmp_path / "m", data)
    with pytest.raises(AdapterError, match=r'"classifier.weight" is \(3, 32\), the model\'s \(2, 32\)'):
        check_fits(adapter, loaded, "m")


def test_an_adapter_without_the_new_head_is_refused(tmp_path: Path, data: TaskData, adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({k: v for k, v in weights.items() if "lora_" in k}, adapter / "adapter_model.safetensors")
    loaded, _ = load(tmp_path / "m", data)
    with pytest.raises(AdapterError, match='has no "classifier"'):
        check_fits(adapter, loaded, "m")


def test_an_adapter_that_is_not_lora_is_refused(tmp_path: Path, data: TaskData, adapter: Path) -> None:
    stored = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(stored | {"peft_type": "ADALORA"}))
    loaded, _ = load(tmp_path / "m", data)
    with pytest.raises(AdapterError, match="ADALORA adapter"):
        check_fits(adapter, loaded, "m")


def test_an_adapter_of_a_plain_peft_script_fits(tmp_path: Path, data: TaskData) -> None:
    loaded, config = load(runs.save_bert(tmp_path / "m"), data)
    peft_model = get_peft_model(loaded.model, LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"]))
    peft_model.save_pretrained(tmp_path / "a")
    again, config = load(tmp_path / "m", data, init_adapter=str(tmp_path / "a"))
    assert add_adapter(again, config).peft_config["default"].r == 2


def test_ranks_that_grow_with_depth_have_mean_r_and_one_scale(data: TaskData, tmp_path: Path) -> None:
    lora = {"r": 4, "scale": 0.5, "ranks": "linear", "rank_ratio": 3}
    loaded, config = load(runs.save_bert(tmp_path / "m"), data, lora=lora)
    made = lora_config(loaded, config)
    assert sorted(set(made.rank_pattern.values())) == [2, 6]
    assert sum(made.rank_pattern.values()) == 4 * len(made.target_modules)
    layers = [m for m in add_adapter(loaded, config).modules() if isinstance(getattr(m, "scaling", None), dict)]
    assert {layer.scaling["default"] for layer in layers} == {0.5}
    assert lora_config(*load(runs.save_bert(tmp_path / "n"), data, lora={"r": 4})).rank_pattern == {}
