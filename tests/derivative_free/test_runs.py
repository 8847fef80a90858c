"""A search as a run: its folder, its adapter, going on, and what is refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmlora.compare.running import compare
from rmlora.config import RunConfig
from rmlora.config_source import resolve
from rmlora.derivative_free.recording import Recorder
from rmlora.errors import ConfigError, StateError
from rmlora.scopes import run
from tests import runs
from tests.compare import studies

SEARCH = {"dimension": 16, "population": 4, "evaluations": 42}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return runs.save_pairs(tmp_path_factory.mktemp("pairs"))


def configured(bert: Path, files: tuple[Path, Path], output: Path, **changes: Any) -> RunConfig:
    told: dict[str, Any] = {"scope": "derivative-free", "method": "lora", "training": {"train_eval_examples": 8}}
    told |= {"lora": {"r": 2, "target_modules": ["query", "key"]}, "derivative_free": SEARCH} | changes
    base = {name: value for name, value in runs.settings(bert, files, output).items() if name != "training"}
    return resolve(base | told)


def test_a_search_leaves_a_plain_adapter_that_is_no_worse_than_none(
    tmp_path: Path, bert: Path, files: tuple[Path, Path]
) -> None:
    result = run(configured(bert, files, tmp_path / "out"))
    rows = runs.rows(tmp_path / "out")
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 9), (2, 17), (3, 25), (4, 33), (5, 41)]
    losses = [row["running_loss"] for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < result["start_loss"]
    assert result["last"] == rows[-1]
    assert result["steps"] == 41
    kept = load_file(tmp_path / "out" / "predictions.safetensors")["logits"]
    model = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2)
    model = PeftModel.from_pretrained(model, str(tmp_path / "out")).eval()
    examples = runs.pairs(16, seed=1)
    texts = ([row[name] for row in examples] for name in ("sentence1", "sentence2"))
    inputs = AutoTokenizer.from_pretrained(bert)(*texts, padding=True, return_tensors="pt")
    torch.testing.assert_close(model(**inputs).logits, kept, atol=1e-5, rtol=0)


def test_a_resumed_search_equals_one_never_interrupted(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (configured(bert, files, tmp_path / name) for name in ("whole", "broken"))
    run(whole)

    def stop(self: Recorder, found: Any) -> None:
        after(self, found)
        if self.round == 3:
            raise KeyboardInterrupt

    after = Recorder.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            run(broken)
    assert not (tmp_path / "broken" / "result.json").exists()
    run(broken, resume=True)
    for name in ("metrics.jsonl", "adapter_model.safetensors", "predictions.safetensors"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert run(broken, resume=True)["steps"] == 41
    (tmp_path / "broken" / "result.json").unlink()
    (tmp_path / "broken" / "checkpoints" / "progress.json").write_text("{")
    with pytest.raises(StateError, match=r"progress.json. is damaged"):
        run(broken, resume=True)


@pytest.mark.slow
def test_a_killed_search_goes_on_to_the_same_bits(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    whole = configured(bert, files, tmp_path / "whole", derivative_free=SEARCH | {"evaluations": 801})
    run(whole)
    words = ["train", str(tmp_path / "whole" / "config.yaml"), f"output={tmp_path / 'killed'}"]
    process = subprocess.Popen([sys.executable, "-m", "rmlora", *words])
    progress = tmp_path / "killed" / "checkpoints" / "progress.json"
    while not progress.exists():
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "result.json").exists()
    subprocess.run([sys.executable, "-m", "rmlora", *words, "--resume"], check=True)
    for name in ("metrics.jsonl", "adapter_model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_study_of_searches_has_rows_like_any_other(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    methods = [
        {"name": "lora", "label": "wide", "derivative_free": {"dimension": 32}},
        {"name": "lora", "label": "narrow"},
    ]
    changes: dict[str, Any] = {"mode": "derivative-free", "derivative_free": SEARCH, "methods": methods, "seeds": [0]}
    changes |= {"learning_rates": [0.5, 1.0], "training": {"train_eval_examples": 0}, "ranks": [2]}
    changes |= {"lora": {"target_modules": ["query", "key"]}}
    rows = compare(studies.study(bert, files, tmp_path / "out", **changes), workers=0)
    assert sorted(row["label"] for row in rows) == sorted(["wide", "narrow"] * 3)
    assert {row["last"]["step"] for row in rows} == {41}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "rm-lora"}, "has no method=rm-lora; give lora"),
        ({"training": {"epochs": 5}}, "has no training.epochs=5"),
        ({"task": "causal-lm"}, "needs a task with one label per example"),
        ({"derivative_free": {"evaluations": 10}}, "evaluations=10 is fewer than one generation of 20"),
        ({"derivative_free": {"dimension": 3}}, "fewer than the 4 factors of block"),
    ],
)
def test_what_a_search_cannot_do_is_refused_in_a_line(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(configured(bert, files, tmp_path / "out", **changes))
    assert not (tmp_path / "out" / "result.json").exists()


def test_without_pycma_nothing_is_written(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(ConfigError, match=r"pip install 'rmlora\[search\]'"):
        run(configured(bert, files, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
