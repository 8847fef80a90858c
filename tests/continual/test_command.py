"""`rmlora train scope=continual` and studies of it, as a user meets them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from rmlora.compare.reading import make_study
from rmlora.compare.running import compare
from rmlora.config import RunConfig
from rmlora.config_source import dump
from rmlora.continual import running
from rmlora.errors import ConfigError
from tests import killing, runs

Configure = Callable[..., RunConfig]
SEEN = (
    "metrics.jsonl",
    "predictions.safetensors",
    "adapter_model.safetensors",
    "matrix.json",
    "matrix.png",
    "curves.png",
)


def write(config: RunConfig, path: Path) -> Path:
    path.write_text(dump(config))
    return path


def assert_same_run(one: Path, other: Path) -> None:
    for name in SEEN:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_run_stopped_between_tasks_goes_on_to_the_same_bits(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(lora={"lora_dropout": 0.2}, continual={"drop_below": 0.4})
    file = write(config, tmp_path / "run.yaml")
    assert runs.call("train", file, f"output={tmp_path / 'straight'}") == 0
    learn, begun = running.learn_stage, []

    def stop(run: Any, stage: Any, *more: Any) -> Any:
        begun.append(stage.number)
        if begun == [1, 2]:
            (run.place(stage).path / "half").mkdir(parents=True)
            raise KeyboardInterrupt
        return learn(run, stage, *more)

    monkeypatch.setattr(running, "learn_stage", stop)
    assert runs.call("train", file) == 130
    assert not (tmp_path / "out" / "result.json").exists()
    assert len(runs.rows(tmp_path / "out")) == 1
    shutil.copytree(tmp_path / "out", tmp_path / "damaged")
    (tmp_path / "damaged" / "checkpoints" / "learnt-001.safetensors").write_bytes(b"")
    assert runs.call("train", file, "--resume", f"output={tmp_path / 'damaged'}") == 2
    assert "is missing or damaged; start the run anew with --overwrite" in capsys.readouterr().err
    assert runs.call("train", file, "--resume") == 0
    assert begun == [1, 2, 2, 3]
    assert_same_run(tmp_path / "straight", tmp_path / "out")
    assert not [path for path in (tmp_path / "out" / "checkpoints").iterdir() if path.is_dir()]
    capsys.readouterr()
    assert runs.call("train", file, "--resume") == 0
    assert "is finished; nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_stopped_behind_the_last_task_only_writes_what_is_missing(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(configure(continual={"strategy": "sequential"}), tmp_path / "run.yaml")
    with monkeypatch.context() as patched:
        patched.setattr(running, "plot_matrix", lambda *told: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert runs.call("train", file) == 130
    before = load_file(tmp_path / "out" / "adapter_model.safetensors")
    monkeypatch.setattr(running, "learn_stage", lambda *told: pytest.fail("nothing is left to learn"))
    assert runs.call("train", file, "--resume") == 0
    assert runs.equal(before, load_file(tmp_path / "out" / "adapter_model.safetensors"))
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["parameters"]["inference"] > 0
    assert "adapter_model.safetensors" in result["files"]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(configure: Configure, tmp_path: Path) -> None:
    file = write(configure(), tmp_path / "run.yaml")
    straight, out = tmp_path / "straight", tmp_path / "out"
    code, changes = killing.run(["train", file, f"output={straight}"], straight)
    assert code == 0
    for change in (changes // 3, changes // 3, 5):  # what is left grows less with each
        assert killing.run(["train", file, "--resume"], out, killing.Moment(change, 0.0))[0] < 0
        assert not (out / "result.json").exists()
    assert killing.run(["train", file, "--resume"], out)[0] == 0
    assert_same_run(straight, out)


def test_a_dry_run_tells_tasks_and_directions_and_writes_nothing(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = [["cat", "dog"], ["car"], ["tree", "boat", "house"]]
    config = configure(continual={"classes": classes, "tasks": 3, "ranks": [3, 1]})
    file = write(config, tmp_path / "run.yaml")
    before = runs.files_of(tmp_path)
    assert runs.call("train", file, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "6 classes in 3 tasks of 3 or 2 or 1" in said
    assert "Directions: 3 + 1 + 1 = 5 in each of 6 modules" in said
    assert runs.files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "rm-lora"}, "give method=lora, or continual.strategy=sequential"),
        ({"continual": {"strategy": "sequential", "start": 1.0}}, "continual.start belongs to strategy sd-lora"),
        (
            {"continual": {"strategy": "sequential"}, "method": "rac-lora"},
            r"rac-lora has more than these \(begin, blocks",
        ),
        ({"continual": {"strategy": "sequential"}, "method": "adalora"}, "method adalora does not have"),
        ({"continual": {"strategy": "sequential"}, "lora": {"use_dora": True}}, "hands A and B alone"),
        ({"lora": {"use_rslora": True, "scale": None}}, "the scale must not change"),
        ({"lora": {"init_lora_weights": "pissa"}}, "new directions begin as LoRA's"),
        ({"continual": {"classes": [["a"], ["b"]], "tasks": 4}}, "continual.classes has 2; leave tasks out"),
        ({"training": {"save": "best"}}, "only the last task's weights"),
        ({"training": {"metric": "matthews"}}, "tasks are compared by accuracy"),
        ({"task": "text-regression"}, "needs a task with classes"),
        ({"evaluation": {"ensemble": 2}}, "leave it out with scope=continual"),
        ({"continual": {"tasks": 7}}, "the data has 6 classes; give at most 6"),
        ({"continual": {"ranks": [12]}}, "3 tasks make 36 directions, but"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(
    changes: dict[str, Any],
    message: str,
    configure: Configure,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write(configure(**changes), tmp_path / "run.yaml")
    assert runs.call("train", file) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(said)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_study_compares_strategies_and_variants(
    sources: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {
        "name": "tiny",
        "mode": "continual",
        "models": [sources["model"]],
        "tasks": [{"name": "things", "data": sources["data"]}],
        "methods": [
            {"name": "lora", "label": "SD-LoRA"},
            {"name": "lora", "label": "SD-LoRA-RR", "continual": {"ranks": [2, 1]}},
            {"name": "rm-lora", "label": "RM, on and on", "continual": {"strategy": "sequential"}},
        ],
        "ranks": [2],
        "seeds": [0],
        "learning_rates": [1e-2],
        "continual": {"tasks": 2},
        "training": {"epochs": 1, "batch_size": 8, "train_eval_examples": 0},
        "keep_weights": "none",
        "output": str(tmp_path / "study"),
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(told))
    compare(make_study(told, "study"), workers=1, threads=1)
    rows = {row["label"]: row for row in map(json.loads, (tmp_path / "study" / "rows.jsonl").read_text().splitlines())}
    assert set(rows) == {"SD-LoRA", "SD-LoRA-RR", "RM, on and on"}
    for row in rows.values():
        assert len(row["last"]["task_accuracy"]) == 2
        assert (tmp_path / "study" / row["folder"] / "matrix.png").is_file()
    assert rows["SD-LoRA"]["parameters"]["inference_adapter"] > rows["SD-LoRA-RR"]["parameters"]["inference_adapter"]
    capsys.readouterr()
    assert runs.call("report", tmp_path / "study") == 0
    assert "SD-LoRA-RR" in next((tmp_path / "study").rglob("report.md")).read_text()
