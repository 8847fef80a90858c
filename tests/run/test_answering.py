import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from rmlora.config_source import resolve
from rmlora.errors import ConfigError
from rmlora.run.choice import complete
from rmlora.train import train
from tests import questions, runs
from tests.reference import squad

KINDS = ("bert", "deberta", "gpt2")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: questions.save_model(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return questions.save_squad(tmp_path_factory.mktemp("squad"), words=20)


def run(model: Path, files: tuple[Path, Path], output: Path, **changes: Any) -> dict[str, Any]:
    # characters of unknown words are tokens of their own, so windows are longer than for words
    changes = {"data": {"max_length": 40, "stride": 12}, **changes}
    return train(resolve(questions.settings(model, files, output, **changes)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_scores_are_the_official_ones_of_the_answers_it_leaves(
    tmp_path: Path, models: dict[str, Path], files: tuple[Path, Path], kind: str
) -> None:
    output = tmp_path / "run"
    result = run(models[kind], files, output, training={"lr": 1e-2})
    answers = json.loads((output / "predictions.json").read_text())
    official = squad.evaluate(json.loads(files[1].read_text())["data"], answers)
    assert (result["task"], result["metric"], result["majority"]) == ("question-answering", "f1", None)
    assert 100 * result["last"]["eval_f1"] == pytest.approx(official["f1"], abs=1e-9)
    assert 100 * result["last"]["eval_exact_match"] == pytest.approx(official["exact_match"], abs=1e-9)
    asked = questions.rows_of(files[1])
    assert list(answers) == [row["id"] for row in asked]
    assert all(answers[row["id"]] in row["context"] for row in asked)
    kept = load_file(output / "predictions.safetensors")
    assert kept["correct"].dtype == np.bool_
    assert kept["correct"].mean() == pytest.approx(result["last"]["eval_exact_match"])
    assert kept["values"].mean() == pytest.approx(result["last"]["eval_f1"], abs=1e-6)
    for row, right in zip(asked, kept["correct"], strict=True):
        assert right == any(squad.exact(answers[row["id"]], gold) for gold in row["answers"]["text"])


@torch.no_grad()
def best_stretch(model: Any, tokenizer: Any, question: str, context: str) -> str:
    """The answer over all pairs of tokens of the whole context."""
    encoded = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    offsets, sides = encoded.pop("offset_mapping")[0], torch.tensor([s == 1 for s in encoded.sequence_ids(0)])
    outputs = model(**encoded)
    sums = outputs.start_logits[0][:, None] + outputs.end_logits[0][None, :]
    allowed = (sides[:, None] & sides[None, :]).triu().tril(29)
    first, last = divmod(int(sums.masked_fill(~allowed, -torch.inf).argmax()), len(sides))
    return context[offsets[first][0] : offsets[last][1]].strip()


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_and_its_new_head_load_in_plain_peft(
    tmp_path: Path, models: dict[str, Path], files: tuple[Path, Path], kind: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    output = tmp_path / "run"
    result = run(models[kind], files, output, training={"epochs": 1, "lr": 1e-2}, data={"max_length": 128})
    assert result["parameters"]["head"] == 2 * 32 + 2
    names = runs.weights(output)
    assert {name for name in names if "qa_outputs" in name} == {
        f"base_model.model.qa_outputs.{p}" for p in ("weight", "bias")
    }
    torch.manual_seed(99)  # a head of its own, which the saved one replaces
    base = AutoModelForQuestionAnswering.from_pretrained(models[kind], num_labels=2)
    model = PeftModel.from_pretrained(base, str(output)).eval()
    tokenizer = AutoTokenizer.from_pretrained(models[kind])
    answers = json.loads((output / "predictions.json").read_text())
    for row in questions.rows_of(files[1]):
        assert answers[row["id"]] == best_stretch(model, tokenizer, row["question"], row["context"])


def test_a_model_learns_to_answer(tmp_path: Path, models: dict[str, Path], files: tuple[Path, Path]) -> None:
    training = {"epochs": 12, "lr": 1e-2, "train_eval_examples": 99, "save_every_epoch": False}
    run(models["bert"], files, tmp_path / "run", training=training, method="lora")
    first, *_, last = runs.rows(tmp_path / "run")
    assert last["train_loss"] < 0.7 * first["train_loss"]
    assert last["train_f1"] > first["train_f1"]


def test_the_whole_model_trains_too(tmp_path: Path, models: dict[str, Path], files: tuple[Path, Path]) -> None:
    result = run(models["gpt2"], files, tmp_path / "run", method="full", training={"epochs": 1})
    assert result["parameters"]["frozen"] == 0
    assert (tmp_path / "run" / "predictions.json").is_file()


def test_answers_keep_the_order_of_the_questions_when_grouped_by_length(
    tmp_path: Path, models: dict[str, Path], files: tuple[Path, Path]
) -> None:
    found = []
    for grouped in (False, True):
        output = tmp_path / str(grouped)
        training = {"epochs": 1, "lr": 1e-12, "group_by_length": grouped, "eval_batch_size": 2}
        run(models["bert"], files, output, training=training)
        found.append(json.loads((output / "predictions.json").read_text()))
    assert list(found[0].items()) == list(found[1].items())


def test_a_resumed_run_leaves_the_same_answers(
    tmp_path: Path, models: dict[str, Path], files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rmlora.run.record import RecordEpochs

    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    run(models["bert"], files, straight, training={"lr": 1e-2})

    def die(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    changes = {"data": {"max_length": 40, "stride": 12}, "training": {"lr": 1e-2}}
    config = resolve(questions.settings(models["bert"], files, stopped, **changes))
    with monkeypatch.context() as patch:
        patch.setattr(
            RecordEpochs, "on_epoch_begin", lambda self, a, state, c, **k: die() if state.epoch >= 1 else None
        )
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert not (stopped / "predictions.json").exists()
    train(config, resume=True)
    for name in ("predictions.json", "predictions.safetensors", "metrics.jsonl"):
        assert (stopped / name).read_bytes() == (straight / name).read_bytes()


def test_windows_are_as_long_as_the_recipe_unless_said_otherwise() -> None:
    base = {"model": "m", "task": "question-answering", "data": {"train": "a", "eval": "b"}}
    completed = complete(resolve(base))
    assert (completed.data.max_length, completed.data.stride) == (384, 128)
    assert (completed.answers.n_best, completed.answers.max_answer_length) == (20, 30)
    assert complete(resolve({**base, "data": {"train": "a", "eval": "b", "max_length": 128}})).data.max_length == 128


def test_a_metric_of_another_task_is_refused_before_anything_is_written(
    tmp_path: Path, models: dict[str, Path], files: tuple[Path, Path]
) -> None:
    with pytest.raises(ConfigError, match="has f1, exact_match, not"):
        run(models["bert"], files, tmp_path / "run", training={"metric": "accuracy"})
    assert not (tmp_path / "run").exists()


def test_windows_too_short_are_refused_before_anything_is_written(
    tmp_path: Path, models: dict[str, Path], files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--train", files[0], "--eval", files[1], "task=question-answering", "max_length=8", "stride=2")
    assert runs.call("train", "--model", models["bert"], *words, "--output", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "data.max_length is 8; raise it or lower data.stride" in " ".join(error.split())
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()
