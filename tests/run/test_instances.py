"""LoRA Dropout over several instances in a whole run: by its knob alone, on models of both kinds."""

import json
from pathlib import Path
from typing import Any

import pytest

from rmlora.config_source import resolve
from rmlora.errors import ConfigError
from rmlora.replicate import ReplicatedForward
from rmlora.train import train
from tests import runs


def run(model: Path, files: tuple[Path, Path], output: Path, **changes: Any) -> dict[str, Any]:
    args = {"p": 0.3, "instances": 3} | changes.pop("method_args", {})
    train(resolve(runs.settings(model, files, output, method="lora-dropout", method_args=args, **changes)))
    return dict(json.loads((output / "result.json").read_text()))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The passes that trained, (first instance, how many), the one that looks for shared inputs left out."""
    seen, compute = [], ReplicatedForward._compute

    def watch(self: ReplicatedForward, first: int, count: int, *rest: Any) -> Any:
        if self.model.training:
            seen.append((first, count))
        return compute(self, first, count, *rest)

    monkeypatch.setattr(ReplicatedForward, "_compute", watch)
    return seen


def test_the_knob_alone_trains_over_instances(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], passes: list[tuple[int, int]]
) -> None:
    result = run(bert, files, tmp_path / "out", training={"epochs": 1})
    assert passes == [(0, 3)] * result["steps"]
    assert result["links"][0]["instances"] == 3
    passes.clear()
    run(bert, files, tmp_path / "chunked", training={"epochs": 1, "instance_chunk": 2})
    assert set(passes) == {(0, 2), (2, 1)}
    first, second = (runs.rows(tmp_path / name)[-1]["train_loss"] for name in ("out", "chunked"))
    assert first == pytest.approx(second, rel=1e-4)
    passes.clear()
    run(bert, files, tmp_path / "one", training={"epochs": 1}, method_args={"instances": 1})
    assert not passes


def test_deberta_computes_one_instance_at_a_time(
    tmp_path: Path, files: tuple[Path, Path], passes: list[tuple[int, int]]
) -> None:
    model = runs.save_deberta(tmp_path / "deberta")
    result = run(model, files, tmp_path / "out", training={"epochs": 1})
    assert passes.count((0, 1)) == passes.count((2, 1)) == 2 * result["steps"], "each again in backward"


def test_a_chunk_of_none_is_refused(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="instance_chunk"):
        run(bert, files, tmp_path / "out", training={"instance_chunk": 0})
