import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from rmlora.compare.running import compare
from rmlora.config_source import resolve
from rmlora.errors import ConfigError, StateError
from rmlora.replay import replay
from rmlora.train import train
from tests import runs
from tests.compare import studies


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def finished(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with dropout and a mask, of two epochs."""
    place = tmp_path_factory.mktemp("finished")
    told = runs.settings(bert, runs.save_pairs(place), place / "run", lora={"lora_dropout": 0.1})
    train(resolve(told | {"method_args": {"directions": 2}}))
    return place


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The run's folder alone, somewhere else, to be changed."""
    return Path(shutil.copytree(finished / "run", tmp_path / "copied"))


def changed(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_replay_is_bit_equal_and_changes_nothing(copied: Path, tmp_path: Path, capsys) -> None:
    before = runs.files_of(copied)
    assert runs.call("replay", copied, "--output", tmp_path / "again") == 0
    said = capsys.readouterr().out
    assert "weights      adapter_model.safetensors: bit-equal, 26 tensors" in said
    assert "metrics      metrics.jsonl: bit-equal, 2 rows" in said
    assert "predictions  predictions.safetensors: bit-equal" in said
    assert said.endswith("Bit-equal.\n")
    assert runs.files_of(copied) == before
    assert runs.equal(runs.weights(copied), runs.weights(tmp_path / "again"))


def test_the_first_difference_of_each_kind_is_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(copied / "adapter_model.safetensors")
    name = sorted(tensors)[3]
    tensors[name].view(torch.int32).flatten()[5] ^= 1
    save_file(tensors, copied / "adapter_model.safetensors")
    rows = runs.rows(copied)
    rows[1]["eval_loss"] += 1e-12
    runs.write_jsonl(copied / "metrics.jsonl", rows)
    assert runs.call("replay", copied) == 1
    said = capsys.readouterr().out
    assert f"adapter_model.safetensors: DIFFERENT, {name}: 1 of " in said
    assert "the first, at 5, was" in said
    assert "metrics.jsonl: DIFFERENT, row 2: eval_loss was" in said
    assert "predictions.safetensors: bit-equal" in said
    assert said.endswith("Different: 2 of 3 files.\n")


def test_other_versions_and_another_machine_are_a_warning(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads((copied / "environment.json").read_text())
    told["versions"]["torch"] = "1.0"
    changed(copied / "environment.json", versions=told["versions"], machine=told["machine"] | {"processor": "abacus"})
    assert runs.call("replay", copied) == 0
    said = capsys.readouterr().out
    assert f"warning: torch was 1.0, is {torch.__version__}" in said
    assert "warning: processor was abacus, is " in said
    assert said.index("warning") < said.index("epoch 1/2")


def test_changed_data_or_model_is_an_error_before_anything_runs_unless_anyway(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, files = Path(shutil.copytree(bert, tmp_path / "model")), runs.save_pairs(tmp_path)
    train(resolve(runs.settings(model, files, tmp_path / "run", training={"epochs": 1})))
    runs.write_jsonl(files[0], runs.pairs(40, seed=5))
    changed(model / "config.json", note="new")
    capsys.readouterr()
    assert runs.call("replay", tmp_path / "run", "--output", tmp_path / "again") == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert 'train.jsonl" has changed since the run read it (and 1 more)' in shown.err
    assert "--anyway" in shown.err
    assert not (tmp_path / "again").exists()
    assert runs.call("replay", tmp_path / "run", "--anyway") == 1
    said = capsys.readouterr().out
    assert "has changed since the run read it: config.json" in said
    assert "adapter_model.safetensors: DIFFERENT" in said
    files[0].unlink()
    assert runs.call("replay", tmp_path / "run", "--anyway") == 2
    assert "is not there; put it back" in capsys.readouterr().err


def test_relative_names_are_found_where_the_run_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").mkdir()
    runs.settle(tmp_path / "home", monkeypatch)
    assert runs.call("train", "run.yaml", "epochs=1", "lora.r=2") == 0
    monkeypatch.chdir(tmp_path)
    assert runs.call("replay", "home/out") == 0
    assert capsys.readouterr().out.endswith("Bit-equal.\n")


def test_runs_of_the_layer_alone_and_runs_that_went_on_from_an_adapter(
    finished: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = (finished / "train.jsonl", finished / "dev.jsonl")
    head = runs.settings(bert, files, tmp_path / "head", scope="head", training={"max_grad_norm": 0})
    onward = runs.settings(bert, files, tmp_path / "onward", training={"epochs": 1}, init_adapter=str(finished / "run"))
    (tmp_path / "told.yaml").write_text(yaml.safe_dump(head | {"lora": {"r": 4, "scale": 1}, "method": "r-lora"}))
    (tmp_path / "onward.yaml").write_text(yaml.safe_dump(onward | {"lora": {}}))
    for name, told in (("head", "told.yaml"), ("onward", "onward.yaml")):
        assert runs.call("train", tmp_path / told) == 0
        found = replay(tmp_path / name)
        assert {f.what for f in found} == {"weights", "metrics", "predictions"}
        assert all(f.compared and f.difference is None for f in found)


def test_a_cell_of_a_study_replays_and_weights_it_did_not_keep_are_named(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "study"
    compare(studies.study(bert, runs.save_pairs(tmp_path), output, seeds=[0], keep_weights="none"), workers=0)
    cell = next((output / "cells").iterdir())
    assert runs.call("replay", cell) == 0
    said = capsys.readouterr().out
    assert "adapter_model.safetensors: not kept by the run, so not compared" in said
    assert said.endswith("Bit-equal, except that adapter_model.safetensors could not be compared.\n")
    with pytest.raises(ConfigError, match=r"no config.yaml.*one of the folders in its cells/"):
        replay(output)


def test_what_cannot_be_replayed_is_one_line(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not there; give the folder of a run"):
        replay(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"is not empty; give a folder that is new or empty"):
        replay(copied, output=copied)
    config = copied / "config.yaml"
    plain = config.read_text()
    config.write_text(plain.replace("trust_remote_code: false", "trust_remote_code: true"))
    with pytest.raises(ConfigError, match=r"ran Python code .*--trust-remote-code"):
        replay(copied)
    config.write_text(plain)
    environment = json.loads((copied / "environment.json").read_text())
    changed(copied / "environment.json", machine=environment["machine"] | {"world_size": 2})
    with pytest.raises(ConfigError, match=r"trained by 2 processes"):
        replay(copied)
    (copied / "environment.json").write_text('{"model"')
    with pytest.raises(StateError, match=r"environment.json\" is damaged"):
        replay(copied)
    (copied / "result.json").unlink()
    with pytest.raises(ConfigError, match=r"is not finished; finish it: rmlora train"):
        replay(copied)
