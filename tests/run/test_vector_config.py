"""VeRA in a whole run and in a study: made from the run's settings, saved as PEFT saves it, counted as vectors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

import rmlora
from rmlora.compare.running import compare
from rmlora.config_source import resolve
from rmlora.errors import ConfigError
from rmlora.run.choice import complete
from rmlora.train import train
from tests import runs
from tests.compare import studies


def run(bert: Path, files: tuple[Path, Path], output: Path, **changes: Any) -> dict[str, Any]:
    train(resolve(runs.settings(bert, files, output, **changes)))
    return dict(json.loads((output / "result.json").read_text()))


def test_a_run_saves_pefts_own_adapter_and_counts_its_vectors(
    tmp_path: Path, bert: Path, files: tuple[Path, Path]
) -> None:
    knobs = {"r": 16, "d_initial": 0.05, "projection_prng_key": 3}
    result = run(bert, files, tmp_path / "out", method="vera", method_args=knobs)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "VERA"
    assert {name: config[name] for name in knobs} == knobs
    base = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2)
    model = PeftModel.from_pretrained(base, tmp_path / "out")
    handle = rmlora.attach(model, rmlora.vera())
    vectors = sum(p.numel() for pair in handle.pairs for p in pair.parameters)
    assert result["parameters"]["adapter"] == result["parameters"]["inference_adapter"] == vectors
    assert any(pair.parameters[1].any() for pair in handle.pairs)
    handle.export(tmp_path / "plain")
    again = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2)
    plain = PeftModel.from_pretrained(again, tmp_path / "plain").eval()
    x = torch.arange(10, 20).unsqueeze(0)
    torch.testing.assert_close(plain(x).logits, model.eval()(x).logits, rtol=0, atol=1e-5)
    assert "A plain VeRA adapter" in (tmp_path / "out" / "README.md").read_text()


def test_it_stands_in_a_study_beside_lora(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    methods = ["lora", {"name": "vera", "args": {"r": 32}}]
    told = studies.study(bert, files, tmp_path / "out", methods=methods, seeds=[0])
    rows = {row["label"]: row for row in compare(told, workers=0)}
    assert rows["vera"]["r"] == 4
    assert rows["vera"]["parameters"]["inference_adapter"] < rows["lora"]["parameters"]["inference_adapter"]


def test_a_run_without_a_rate_gets_one_of_its_own() -> None:
    assert complete(resolve({"model": "m", "method": "vera"})).training.lr == 1e-2
    assert complete(resolve({"model": "m", "method": "lora"})).training.lr == 1e-3


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"use_rslora": True}, {"init_lora_weights": "pissa"}])
def test_variants_of_lora_are_refused_before_anything_is_written(
    lora: dict[str, Any], tmp_path: Path, bert: Path, files: tuple[Path, Path]
) -> None:
    message = f"method=vera has no A and B of its own, so lora.{next(iter(lora))}"
    with pytest.raises(ConfigError, match=message):
        run(bert, files, tmp_path / "out", method="vera", lora=lora)
    assert not (tmp_path / "out").exists()
    studies.assert_refused(message, bert, files, tmp_path, methods=["lora", {"name": "vera", "lora": lora}])


def test_an_adapter_to_start_from_is_refused(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    run(bert, files, tmp_path / "lora", method="lora", training={"epochs": 1})
    with pytest.raises(ConfigError, match="method=vera starts from its own vectors"):
        run(bert, files, tmp_path / "out", method="vera", init_adapter=str(tmp_path / "lora"), lora={})
