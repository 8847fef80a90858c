"""AdaLoRA and SoRA in a whole run: the budget is lora.r per module, and what is saved is plain LoRA."""

import json
from pathlib import Path
from typing import Any

import pytest

from rmlora.analysis.adapters import inspect_adapter
from rmlora.config_source import resolve
from rmlora.errors import ConfigError
from rmlora.train import train
from tests import runs


def run(bert: Path, files: tuple[Path, Path], output: Path, **changes: Any) -> dict[str, Any]:
    train(resolve(runs.settings(bert, files, output, **changes)))
    return dict(json.loads((output / "result.json").read_text()))


@pytest.mark.parametrize("method", ["adalora", "sora"])
def test_a_run_ends_in_a_plain_adapter(method: str, tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    result = run(bert, files, tmp_path / "out", method=method)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    modules = inspect_adapter(tmp_path / "out").modules
    assert {row.r for row in modules} == {6 if method == "adalora" else 4}
    assert [row.scale for row in modules] == pytest.approx([2.0] * len(modules), rel=1e-5)
    if method == "adalora":
        assert result["parameters"]["inference_adapter"] < result["parameters"]["adapter"]


def test_a_run_keeps_the_target_budget(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    result = run(bert, files, tmp_path / "out", method="adalora", training={"epochs": 4, "save": "last"})
    lora = run(bert, files, tmp_path / "lora", method="lora", training={"epochs": 1})
    widest, same = lora["parameters"]["inference_adapter"] * 1.4, lora["parameters"]["inference_adapter"]
    assert same * 0.7 < result["parameters"]["inference_adapter"] < widest, "modules differ in shape"


def test_too_short_a_run_is_refused(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="too few for method=adalora"):
        run(bert, files, tmp_path / "out", method="adalora", training={"epochs": 1, "batch_size": 40})


def test_ranks_that_grow_with_depth_are_not_for_triplets(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="method=adalora finds its own ranks"):
        run(bert, files, tmp_path / "out", method="adalora", lora={"r": 4, "ranks": "linear"})


def test_rslora_gives_it_the_scale_of_lora_and_what_it_has_not_is_refused(
    tmp_path: Path, bert: Path, files: tuple[Path, Path]
) -> None:
    run(bert, files, tmp_path / "out", method="adalora", lora={"r": 4, "lora_alpha": 8, "use_rslora": True})
    assert [row.scale for row in inspect_adapter(tmp_path / "out").modules] == pytest.approx([4.0] * 12, rel=1e-5)
    for name, value in (("use_dora", True), ("init_lora_weights", "pissa")):
        with pytest.raises(ConfigError, match=f"method=adalora starts from triplets of its own.* lora.{name}={value}"):
            run(bert, files, tmp_path / "no", method="adalora", lora={name: value})
