import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from rmlora.config import RunConfig, section_names, setting_names
from rmlora.config_source import dump, full_name, merge, parse_override, parse_yaml, read_config, resolve
from rmlora.errors import ConfigError


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", ".1e-2", "1.0e-3", "+1e-3", "0.001"])
def test_every_way_to_write_a_number_is_a_number(text: str) -> None:
    assert parse_yaml(f"lr: {text}", "here")["lr"] == pytest.approx(1e-3)


@pytest.mark.parametrize("text", ["1e", "e3", "1e-3x", "v1e3", "2e3/5"])
def test_text_that_only_looks_like_a_number_stays_text(text: str) -> None:
    assert parse_yaml(f"name: {text}", "here")["name"] == text


def test_defaults_survive_being_written_and_read() -> None:
    config = resolve({"model": "m", "method_args": {"weight": 1e-5}, "training": {"lr": 1e-5}})
    assert resolve(parse_yaml(dump(config), "dump")) == config


def test_the_dump_names_every_setting() -> None:
    flat = json.dumps(parse_yaml(dump(RunConfig(model="m")), "dump"))
    assert not [name for name in setting_names() if f'"{name.split(".")[-1]}"' not in flat]


def test_every_setting_is_described_in_the_schema() -> None:
    def undescribed(section: type[BaseModel]) -> list[str]:
        return [name for name, field in section.model_fields.items() if not field.description]

    sections = [f.annotation for f in RunConfig.model_fields.values() if hasattr(f.annotation, "model_fields")]
    assert len(sections) == len(section_names())
    assert not [name for section in (RunConfig, *sections) for name in undescribed(section)]


def test_later_words_win_and_nothing_is_mutated() -> None:
    settings = {"model": "m", "lora": {"r": 8}}
    merged = merge(settings, {"lora.r": 4, "training.lr": 0.1, "data": None})
    assert (merged["lora"], merged["training"], merged["data"]) == ({"r": 4}, {"lr": 0.1}, None)
    assert settings == {"model": "m", "lora": {"r": 8}}


def test_an_empty_group_means_its_defaults() -> None:
    assert resolve({"model": "m", "lora": None, "method_args": None}) == RunConfig(model="m")


def test_short_names_are_completed() -> None:
    knobs = ("weight", "directions")
    found = [full_name(key, knobs) for key in ("lr", "r", "weight", "model", "lora.r", "data.eval")]
    assert found == ["training.lr", "lora.r", "method_args.weight", "model", "lora.r", "data.eval"]


def test_override_values_are_yaml() -> None:
    words = ["lr=1e-4", "target_modules=[query, value]", "save=best", "use_dora=true", "metric=null", "output=a=b"]
    assert [parse_override(word)[1] for word in words] == [1e-4, ["query", "value"], "best", True, None, "a=b"]


def test_json_is_a_config_too(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"model": "m", "training": {"lr": 0.1}}))
    assert resolve(read_config(tmp_path / "run.json")).training.lr == 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modell": "m"}, r'unknown setting "modell" \(did you mean "model"\?\)'),
        ({"model": "m", "lora": {"rank": 1}}, r'unknown setting "lora.rank"'),
        ({"model": "m", "lora": {"lora_aplha": 1}}, r'did you mean "lora.lora_alpha"'),
        ({"model": "m", "lr": 0.1}, r'unknown setting "lr" \(did you mean "training.lr"\?\)'),
        ({}, r'"model" is missing'),
        ({"model": "m", "training": {"lr": -1}}, r'"training.lr": .*greater than 0, got -1'),
        ({"model": "m", "training": {"warmup_steps": float("inf")}}, r'"training.warmup_steps": .*finite number'),
        ({"model": "m", "training": {"lr": "fast"}}, r'"training.lr": .*number.*"?fast'),
        ({"model": "m", "training": {"epochs": 0, "lr": -1}}, r"and 1 more"),
        ({"model": "m", "task": "translation"}, r'"task": .*text-classification'),
        ({"model": "m", "lora": {"r": 0}}, r'"lora.r": .*greater than or equal to 1'),
        ({"model": "m", "lora": 8}, r'"lora": '),
    ],
)
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [a", r"run.yaml, line \d+: not valid YAML"),
        ("model: a\nmodel: b", r'"model" is given twice'),
        ("- a\n- b", r"expected settings \(key: value\), got a list"),
        ("model: *unknown", r"not valid YAML"),
        ("x: !!python/object:os.system {}", r"not valid YAML"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "run.yaml")


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "rte.yaml").write_text("model: m")
    with pytest.raises(ConfigError, match=r'did you mean ".*rte.yaml"'):
        read_config(tmp_path / "rtee.yaml")


def test_an_ambiguous_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown setting"):
        full_name("learning_rate")
    with pytest.raises(ConfigError, match="neither a config file nor key=value"):
        parse_override("lr")
