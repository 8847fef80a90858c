import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from rmlora.compare.predictions import read_predictions
from rmlora.config_source import resolve
from rmlora.errors import ConfigError, DataError
from rmlora.tasks.completions import encode_completions
from rmlora.tasks.data import Examples
from rmlora.train import train
from tests import runs
from tests.tasks import language_models as lm
from tests.tasks.test_causal import BUILD, slow_losses


def settings(model: Path, files: tuple[Path, Path], output: Path, **changes: Any) -> dict[str, Any]:
    generation = {"generation": {"examples": 3, "max_new_tokens": 12}}
    return runs.settings(model, files, output, task="causal-lm") | generation | changes


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return lm.save_rows(tmp_path_factory.mktemp("completions"))


@pytest.mark.parametrize("name", BUILD)
def test_a_run_keeps_how_likely_each_completion_is(name: str, tmp_path: Path, files: tuple[Path, Path]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, output = BUILD[name](tmp_path / "model"), tmp_path / "run"
    result = train(resolve(settings(model, files, output)))
    assert result["metric"] == "log_likelihood"
    assert result["parameters"]["head"] == 0
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), output).eval()
    held_out = lm.rows(16, seed=1)
    examples = Examples(([row["prompt"] for row in held_out],), [row["completion"] for row in held_out])
    slow = slow_losses(loaded, encode_completions(examples, AutoTokenizer.from_pretrained(model), 16))
    kept = load_file(output / "predictions.safetensors")
    assert kept["values"] == pytest.approx([np.mean(own) for own in slow], rel=1e-4)
    assert kept["labels"].tolist() == [len(own) for own in slow]
    exact = np.mean([loss for own in slow for loss in own])
    assert result["last"]["eval_loss"] == pytest.approx(exact, rel=1e-4)
    assert result["last"]["eval_perplexity"] == pytest.approx(np.exp(exact), rel=1e-4)
    assert result["last"]["eval_log_likelihood"] == -result["last"]["eval_loss"]
    score = read_predictions(output / "predictions.safetensors").score("log_likelihood")
    assert score is not None
    assert score.value() == pytest.approx(-exact, rel=1e-4)


@pytest.mark.parametrize("method", ["full", "lora", "rm-lora"])
def test_a_language_model_learns_its_completions_and_to_end(
    method: str, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    model, output = lm.save_llama(tmp_path / "model"), tmp_path / "run"
    training = {"epochs": 12, "batch_size": 4, "lr": 2e-2, "train_eval_examples": 0, "save_every_epoch": False}
    changes = {"lora": {"r": 8}} if method != "full" else {}
    result = train(resolve(settings(model, files, output, method=method, training=training, **changes)))
    measured = [row["eval_loss"] for row in runs.rows(output)]
    assert measured[-1] < measured[0] - 0.05
    generated = [json.loads(line) for line in (output / "generated.jsonl").read_text().splitlines()]
    assert len(generated) == 3 == result["generation"]["examples"]
    if method == "full":  # the adapters have a random model to adapt
        assert measured[-1] < 1.5, "a uniform guess is 3.5"
        assert all(len(row["generated"].split()) < 12 for row in generated), "none goes on until it is stopped"
        known = {row["completion"] for row in lm.rows(40)} | {row["completion"] for row in lm.rows(16, 1)}
        assert any(row["generated"] in known for row in generated)


def test_accumulation_weighs_every_token_of_a_step_the_same(tmp_path: Path, files: tuple[Path, Path]) -> None:
    model, found = lm.save_llama(tmp_path / "model"), []
    for batch, steps in ((8, 1), (2, 4)):
        training = {"epochs": 1, "batch_size": batch, "gradient_accumulation_steps": steps, "train_eval_examples": 0}
        output = tmp_path / f"run{batch}"
        train(resolve(settings(model, files, output, method="lora", training=training)))
        found.append(runs.weights(output))
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-4) for name in found[0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "cat"}, r'row 3: column "completion" holds nothing'),
        ({"prompt": "cat", "completion": " "}, r'row 3: column "completion" is empty'),
        ({"prompt": "cat", "completion": 5}, r'row 3: column "completion" holds 5, which is not text'),
        ({"completion": "cat"}, r'row 3: column "prompt" holds nothing'),
        ({"prompt": "cat", "completion": "the cat is red " * 8}, r"data.max_length=16 leaves nothing of the prompt"),
    ],
)
def test_bad_rows_are_one_line_and_nothing_is_written(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    model, output = lm.save_gpt2(tmp_path / "model"), tmp_path / "run"
    bad = runs.write_jsonl(tmp_path / "bad.jsonl", [*lm.rows(2), row])
    with pytest.raises(DataError, match=message) as error:
        train(resolve(settings(model, (bad, bad), output)))
    assert "\n" not in str(error.value)
    assert not output.exists()


def test_lengths_beyond_the_model_are_refused(tmp_path: Path, files: tuple[Path, Path]) -> None:
    model = lm.save_gpt2(tmp_path / "model")
    for changes in ({"data": {"max_length": 64}}, {"generation": {"max_new_tokens": 32}}):
        config = settings(model, files, tmp_path / "run")
        config |= {name: config[name] | values for name, values in changes.items()}
        with pytest.raises(ConfigError, match=r"does not fit into the 32 positions of the model"):
            train(resolve(config))
    with pytest.raises(ConfigError, match=r'causal-lm has log_likelihood, not "accuracy"'):
        train(resolve(settings(model, files, tmp_path / "run", training={"metric": "accuracy"})))


def test_texts_are_compared_with_all_completions_of_their_prompt(tmp_path: Path, files: tuple[Path, Path]) -> None:
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    from rmlora.tasks.text_overlap import bleu, rouge_l

    assert rouge_l(["the cat is red"], [["a dog"], ["the cat is red"]][1:]) == 1
    assert rouge_l(["the cat is red"], [["a dog", "the cat is red"]]) == 1
    assert rouge_l(["the cat"], [["the cat is red"]]) == pytest.approx(2 / 3)
    texts = ["the cat is red and the dog is blue", "a b c d e"]
    assert bleu(texts, [["no", texts[0]], [texts[1]]]) == pytest.approx(1)
    assert bleu(["x y z w"], [["the cat is red"]]) < 0.2
    generation = {"examples": 100, "max_new_tokens": 8, "metrics": ["rouge_l", "bleu"]}
    result = train(resolve(settings(lm.save_gpt2(tmp_path / "m"), files, tmp_path / "run", generation=generation)))
    assert result["generation"]["examples"] == len({row["prompt"] for row in lm.rows(16, 1)}) < 16
    assert 0 <= result["generation"]["bleu"] <= 1
    assert 0 <= result["generation"]["rouge_l"] <= 1


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from rmlora.tasks.text_overlap import check_overlap_metrics

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'"bleu" needs sacrebleu: pip install "rmlora\[generation\]"'):
        check_overlap_metrics(["bleu"])
