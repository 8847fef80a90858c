"""`rmlora predict` and the ensemble a run evaluates at its end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from rmlora.config_source import resolve
from rmlora.errors import ConfigError, DataError, RmloraError, StateError
from rmlora.run.choice import complete
from rmlora.run.predict_run import Wanted, predict_run
from rmlora.tasks.calibration import brier_score, expected_calibration_error
from rmlora.train import train
from tests import questions, runs
from tests.tasks import language_models

DROPOUT: dict[str, Any] = {"method": "lora-dropout", "method_args": {"p": 0.3}}
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "train_eval_examples": 0, "lr": 1e-2, "save_every_epoch": False}


@pytest.fixture(scope="module", params=["none", "inverted"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bert: Path, files: Any) -> Path:
    """A finished run of LoRA Dropout whose ensemble was evaluated."""
    output = tmp_path_factory.mktemp("run") / "run"
    changes = DROPOUT | {"method_args": {"p": 0.3, "rescale": request.param}, "training": QUICK}
    train(
        resolve(runs.settings(bert, files, output, **changes, evaluation={"ensemble": 4, "average": "probabilities"}))
    )
    return output


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_records_its_calibration_alone_and_as_an_ensemble(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    alone, joint = load_file(run / "predictions.safetensors"), load_file(run / "predictions_ensemble.safetensors")
    for found, kept in ((result, alone), (result["ensemble"], joint)):
        assert sum(found["reliability"]["count"]) == len(kept["labels"]) == 16
    last = result["last"]
    assert last["eval_brier"] == pytest.approx(brier_score(alone["logits"], alone["labels"]), abs=1e-6)
    ensemble = result["ensemble"]
    assert (ensemble["instances"], ensemble["average"]) == (4, "probabilities")
    assert ensemble["brier"] == pytest.approx(brier_score(joint["logits"], joint["labels"]), abs=1e-6)
    assert ensemble["ece"] == pytest.approx(expected_calibration_error(joint["logits"], joint["labels"]), abs=1e-6)
    assert ensemble["accuracy"] == pytest.approx(joint["correct"].mean())
    assert ensemble["path"].startswith("shared up to")
    assert np.abs(np.exp(joint["logits"]).sum(-1) - 1).max() < 1e-5
    assert np.abs(alone["logits"] - joint["logits"]).max() > 1e-3


def test_predicting_again_gives_the_runs_own_numbers(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    found = predict_run(run, Wanted())
    rows = lines(run / "predicted.jsonl")
    assert found["accuracy"] == result["last"]["eval_accuracy"]
    assert found["brier"] == pytest.approx(result["last"]["eval_brier"], abs=1e-6)
    kept = load_file(run / "predictions.safetensors")
    assert [row["prediction"] for row in rows] == [str(label) for label in kept["logits"].argmax(-1)]
    assert [row["label"] for row in rows] == [str(label) for label in kept["labels"]]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5) for row in rows)


def test_the_ensemble_of_a_saved_run_is_the_one_it_evaluated(run: Path, tmp_path: Path) -> None:
    ensemble = json.loads((run / "result.json").read_text())["ensemble"]
    found = predict_run(run, Wanted(ensemble=4, chunk=3, output=tmp_path / "new" / "answers.jsonl"))
    for name in ("accuracy", "ece", "brier"):
        assert found[name] == pytest.approx(ensemble[name], abs=1e-5)
    kept = load_file(run / "predictions_ensemble.safetensors")
    told = [list(row["probabilities"].values()) for row in lines(tmp_path / "new" / "answers.jsonl")]
    np.testing.assert_allclose(told, np.exp(kept["logits"]), atol=2e-5)
    other = predict_run(run, Wanted(ensemble=4, average="logits"))
    assert other["brier"] != found["brier"]


def test_another_file_may_lack_labels(run: Path, tmp_path: Path) -> None:
    rows = [{name: row[name] for name in ("sentence1", "sentence2")} for row in runs.pairs(5, seed=3)]
    file = runs.write_jsonl(tmp_path / "new.jsonl", rows)
    found = predict_run(run, Wanted(data=str(file)))
    assert found == {"examples": 5, "output": str(run / "predicted.jsonl")}
    assert "label" not in lines(run / "predicted.jsonl")[0]


def test_the_command_prints_metric_and_calibration(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.call("predict", run, "--ensemble", 2) == 0
    told = capsys.readouterr().out
    assert "Ensemble of 2, average of probabilities; shared up to" in told
    assert all(name in told for name in ("accuracy", "ece", "brier", "predicted-ensemble.jsonl"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ensemble", 0), "--ensemble is a number of instances, 1 or more, got 0"),
        (("--average", "logits"), "give --ensemble N with it"),
        (("--ensemble", 2, "--average", "votes"), 'average must be "logits" or "probabilities"'),
        (("--ensemble", 2, "--chunk", 0), "--chunk is a number of instances, 1 or more, got 0"),
        (("--data", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--output", "."), "is a folder; give a file"),
    ],
)
def test_bad_input_is_one_line(
    run: Path, words: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs.call("predict", run, *words) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_a_folder_that_is_no_finished_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not there; give the folder that rmlora train wrote"):
        predict_run(tmp_path / "nowhere", Wanted())
    with pytest.raises(ConfigError, match=r"has no config.yaml, so it holds no run"):
        predict_run(tmp_path, Wanted())
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(ConfigError, match="is not finished"):
        predict_run(tmp_path, Wanted())
    (tmp_path / "result.json").write_text((run / "result.json").read_text())
    with pytest.raises(RmloraError, match=r"has no adapter_config.json"):
        predict_run(tmp_path, Wanted())


def test_a_file_of_other_columns_is_refused(run: Path, tmp_path: Path) -> None:
    file = runs.write_jsonl(tmp_path / "other.jsonl", [{"question": "what", "answer": "that"}])
    with pytest.raises(DataError, match="sentence1"):
        predict_run(run, Wanted(data=str(file)))


def test_without_what_folding_lost_there_is_no_ensemble(bert: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(resolve(runs.settings(bert, files, output, **DROPOUT, training=QUICK | {"epochs": 1})))
    (output / "rmlora_state.safetensors").unlink()
    with pytest.raises(StateError, match=r"has no rmlora_state.safetensors"):
        predict_run(output, Wanted(ensemble=2))
    assert predict_run(output, Wanted())["examples"] == 16


def test_a_method_that_draws_nothing_has_no_ensemble(bert: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(resolve(runs.settings(bert, files, output, method="lora", training=QUICK | {"epochs": 1})))
    with pytest.raises(ConfigError, match="was trained by lora, which draws none"):
        predict_run(output, Wanted(ensemble=2))
    assert not (output / "predicted-ensemble.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "lora"}, "lora with these settings draws nothing"),
        ({"method": "lora-dropout", "method_args": {"p": 0.0}}, "lora-dropout with these settings draws nothing"),
        ({**DROPOUT, "scope": "head"}, "leave it out with scope=head"),
    ],
)
def test_an_ensemble_of_equals_is_refused_before_anything_is_written(
    bert: Path, files: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    settings = runs.settings(bert, files, tmp_path / "run", **changes, evaluation={"ensemble": 4})
    with pytest.raises(ConfigError, match=message):
        complete(resolve(settings))


def test_questions_are_answered_by_an_ensemble(tmp_path: Path) -> None:
    model, output = questions.save_model(tmp_path / "model", "deberta"), tmp_path / "run"
    files = questions.save_squad(tmp_path, words=20)
    changes = {"data": {"max_length": 40, "stride": 12}, "training": {"epochs": 1}, "evaluation": {"ensemble": 3}}
    result = train(resolve(questions.settings(model, files, output, **DROPOUT, **changes)))
    assert "block by block" in result["ensemble"]["path"]
    found = predict_run(output, Wanted(ensemble=3))
    assert found["f1"] == pytest.approx(result["ensemble"]["f1"])
    assert found["exact_match"] == pytest.approx(result["ensemble"]["exact_match"])
    asked = [row["id"] for row in questions.rows_of(files[1])]
    assert [row["id"] for row in lines(output / "predicted-ensemble.jsonl")] == asked
    assert predict_run(output, Wanted())["f1"] == pytest.approx(result["last"]["eval_f1"])


def test_a_language_model_is_an_ensemble_of_next_token_distributions(tmp_path: Path) -> None:
    model, files = language_models.save_llama(tmp_path / "model"), language_models.save_rows(tmp_path)
    changes = {"task": "causal-lm", "training": QUICK, "generation": {"examples": 0}}
    told = DROPOUT | {"evaluation": {"ensemble": 3, "average": "probabilities"}}
    result = train(resolve(runs.settings(model, files, tmp_path / "run", **changes, **told)))
    found = predict_run(tmp_path / "run", Wanted(ensemble=3))
    assert found["log_likelihood"] == pytest.approx(result["ensemble"]["log_likelihood"], abs=1e-5)
    alone = predict_run(tmp_path / "run", Wanted())
    assert alone["log_likelihood"] == pytest.approx(result["last"]["eval_log_likelihood"], abs=1e-5)


def test_a_regression_and_a_whole_model_are_predicted_too(bert: Path, tmp_path: Path) -> None:
    rows = [row | {"label": float(row["label"]) + 0.25} for row in runs.pairs(24)]
    file = runs.write_jsonl(tmp_path / "scores.jsonl", rows)
    for method in ("full", "rm-lora"):
        output = tmp_path / method
        changes = {"task": "text-regression", "method": method, "training": QUICK}
        result = train(resolve(runs.settings(bert, (file, file), output, **changes)))
        found = predict_run(output, Wanted())
        assert found["pearson"] == pytest.approx(result["last"]["eval_pearson"], abs=1e-5)
        assert lines(output / "predicted.jsonl")[0]["label"] in (0.25, 1.25)
