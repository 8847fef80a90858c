import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from rmlora.config_source import parse_yaml, resolve
from rmlora.errors import ConfigError, RmloraError, StateError
from rmlora.train import train
from tests import runs


def test_llama_factory_4452_a_run_leaves_everything_that_is_known_about_it(
    tmp_path: Path, bert: Path, files: tuple[Path, Path]
) -> None:
    output = tmp_path / "run"
    train(resolve(runs.settings(bert, files, output, method="rm-lora", method_args={"weight": 1e-3, "directions": 2})))
    assert {p.name for p in output.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "checkpoints",
        "config.yaml",
        "curves.png",
        "environment.json",
        "metrics.jsonl",
        "predictions.safetensors",
        "result.json",
    }
    result = json.loads((output / "result.json").read_text())
    measured = runs.rows(output)
    assert result["last"] == measured[-1]
    assert result["best"] == max(measured, key=lambda row: row["eval_accuracy"])
    assert [row["epoch"] for row in measured] == [1, 2]
    for row in measured:
        assert row["gap"] == row["train_accuracy"] - row["eval_accuracy"]
        assert row["loss_gap"] == row["eval_loss"] - row["train_loss"]
        assert 1 <= row["effective_rank"] <= 4
        assert row["penalty"] > 0
    assert result["parameters"]["trainable"] == result["parameters"]["adapter"] + 2 * 32 + 2
    assert [link["link"] for link in result["links"]] == ["AddOrthogonality", "MaskDirections"]
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_environment_tells_what_went_in(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    import hashlib

    output = tmp_path / "run"
    train(resolve(runs.settings(bert, files, output, training={"epochs": 1})))
    environment = json.loads((output / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__
    stored = hashlib.sha256((bert / "model.safetensors").read_bytes()).hexdigest()
    assert environment["model"]["files"]["model.safetensors"] == stored
    assert environment["data"][str(files[0])] == hashlib.sha256(files[0].read_bytes()).hexdigest()


def test_the_card_is_readable_by_a_hub(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    output = tmp_path / "run"
    result = train(resolve(runs.settings(bert, files, output, training={"epochs": 1})))
    _, front, text = (output / "README.md").read_text().split("---\n", 2)
    card = parse_yaml(front, "card")
    assert (card["base_model"], card["library_name"]) == (str(bert), "peft")
    assert {"rmlora", "rm-lora", "lora"} <= set(card["tags"])
    assert f"{result['best']['eval_accuracy']:.4f}" in text


def loss_in_plain_peft(bert: Path, output: Path) -> float:
    """The loss on the training pairs, computed by PEFT from the published base and the saved adapter."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2)
    model = PeftModel.from_pretrained(base, output).eval()
    texts = [[row[name] for row in runs.pairs(40)] for name in ("sentence1", "sentence2")]
    labels = torch.tensor([row["label"] for row in runs.pairs(40)])
    with torch.no_grad():
        logits = model(**AutoTokenizer.from_pretrained(bert)(*texts, padding=True, return_tensors="pt")).logits
    return float(torch.nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize(
    ("lora", "r"),
    [
        ({}, 4),
        ({"init_lora_weights": "orthogonal"}, 4),
        ({"init_lora_weights": "pissa"}, 8),
        ({"init_lora_weights": "olora", "use_rslora": True}, 8),
        ({"init_lora_weights": "pissa", "use_dora": True}, 8),
    ],
    ids=["plain", "orthogonal", "pissa", "olora, rslora", "pissa, dora"],
)
def test_what_is_saved_is_plain_peft_for_the_published_base(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], lora: dict, r: int
) -> None:
    changes = {"lora": lora, "data": {"eval": str(files[0])}, "training": {"lr": 1e-2}}
    result = train(resolve(runs.settings(bert, files, tmp_path / "run", **changes)))
    assert loss_in_plain_peft(bert, tmp_path / "run") == pytest.approx(result["last"]["eval_loss"], abs=1e-5)
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["r"] == r


@pytest.mark.parametrize(
    ("method", "lora", "r"),
    [
        ({"method": "delta-lora"}, {}, 8),
        ({"method": "delta-lora"}, {"init_lora_weights": "olora", "use_rslora": True}, 12),
        ({"method": "rac-lora", "method_args": {"blocks": 3, "block_steps": 2}}, {}, 12),
    ],
    ids=["delta", "delta, olora", "rac"],
)
def test_methods_with_blocks_are_saved_for_the_published_base(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], method: dict, lora: dict, r: int
) -> None:
    changes = {"lora": lora, **method, "data": {"eval": str(files[0])}, "training": {"lr": 1e-2}}
    result = train(resolve(runs.settings(bert, files, tmp_path / "run", **changes)))
    assert loss_in_plain_peft(bert, tmp_path / "run") == pytest.approx(result["last"]["eval_loss"], abs=1e-5)
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["r"] == r


def test_a_folder_in_use_is_refused_unless_asked(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    output = tmp_path / "run"
    config = resolve(runs.settings(bert, files, output, training={"epochs": 1}))
    train(config)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="finished run; give --overwrite"):
        train(config)
    changed = resolve(runs.settings(bert, files, output, training={"epochs": 1, "lr": 0.5}))
    with pytest.raises(StateError, match=r"training.lr was 0.001 and is now 0.5"):
        train(changed, resume=True)
    full = resolve(runs.settings(bert, files, output, training={"epochs": 1}, method="full"))
    train(full, overwrite=True)
    assert not (output / "adapter_model.safetensors").exists()
    assert (output / "model.safetensors").exists()
    assert (output / "notes.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="holds no rmlora run"):
        train(resolve(runs.settings(bert, files, tmp_path / "other")), overwrite=True)


def test_best_keeps_the_best_epochs_weights(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    # at this learning rate the last epoch is not the best one
    changes = {"epochs": 4, "lr": 0.05, "lr_scheduler": "constant", "save": "best", "max_grad_norm": 0}
    result = train(resolve(runs.settings(bert, files, tmp_path / "best", training=changes)))
    assert result["best"]["epoch"] < result["last"]["epoch"]
    short = changes | {"epochs": result["best"]["epoch"], "save": "last"}
    train(resolve(runs.settings(bert, files, tmp_path / "last", training=short)))
    assert runs.equal(runs.weights(tmp_path / "best"), runs.weights(tmp_path / "last"))


def test_transformers_33420_only_some_epochs_are_evaluated_and_the_last_is(
    tmp_path: Path, bert: Path, files: tuple[Path, Path]
) -> None:
    sparing = {"epochs": 3, "evaluate_every": 2}
    result = train(resolve(runs.settings(bert, files, tmp_path / "run", training=sparing)))
    assert [row["epoch"] for row in runs.rows(tmp_path / "run")] == [2, 3]
    assert result["last"]["epoch"] == 3
    best = runs.settings(bert, files, tmp_path / "best", training=sparing | {"save": "best"})
    with pytest.raises(ConfigError, match=r"training\.save=best needs every epoch evaluated"):
        train(resolve(best))


def test_deberta_77_training_that_diverges_stops_and_says_so(
    tmp_path: Path, bert: Path, files: tuple[Path, Path]
) -> None:
    changes = {"lr": 1e30, "max_grad_norm": 0, "lr_scheduler": "constant"}
    with pytest.raises(RmloraError, match=r"loss is nan at step 2 of 10: .* lower training.lr"):
        train(resolve(runs.settings(bert, files, tmp_path / "run", training=changes)))


def test_regression_learns_numbers(tmp_path: Path, bert: Path) -> None:
    table = [row | {"label": 0.5 + row["label"]} for row in runs.pairs(40)]
    files = (runs.write_jsonl(tmp_path / "a.jsonl", table), runs.write_jsonl(tmp_path / "b.jsonl", table[:12]))
    changes = {"task": "text-regression", "training": {"epochs": 8, "lr": 1e-2}}
    result = train(resolve(runs.settings(bert, files, tmp_path / "run", **changes)))
    assert (result["metric"], result["majority"]) == ("pearson", None)
    measured = runs.rows(tmp_path / "run")
    assert measured[-1]["train_loss"] < measured[0]["train_loss"]
    assert {"eval_pearson", "eval_spearman"} <= measured[0].keys()


def test_images_are_learnt_from_one_npz(tmp_path: Path) -> None:
    model, data = runs.save_vit(tmp_path / "vit"), runs.save_digits(tmp_path / "d.npz")
    settings = runs.settings(model, (data, data), tmp_path / "run", task="image-classification")
    settings["training"] |= {"epochs": 6, "lr": 1e-2, "train_eval_examples": 0}
    del settings["data"]["eval"]
    result = train(resolve(settings))
    assert result["last"]["eval_accuracy"] > result["majority"]
    assert result["last"]["gap"] is None
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["task_type"] is None
    assert {n.split(".")[2] for n in runs.weights(tmp_path / "run")} == {"vit", "classifier"}


def test_an_adapter_goes_on_where_it_was(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    train(resolve(runs.settings(bert, files, tmp_path / "first", lora={"r": 2})))
    again = runs.settings(bert, files, tmp_path / "second", init_adapter=str(tmp_path / "first"))
    again["training"] |= {"lr": 1e-30, "epochs": 1}
    del again["lora"]
    train(resolve(again))
    assert runs.equal(runs.weights(tmp_path / "first"), runs.weights(tmp_path / "second"))
    assert parse_yaml((tmp_path / "second" / "config.yaml").read_text(), "c")["lora"]["r"] == 2
    with pytest.raises(ConfigError, match=r"lora.r is 4, but the adapter .*first has 2"):
        train(resolve(again | {"lora": {"r": 4}}), overwrite=True)


def test_a_terminal_sees_a_bar_and_a_file_sees_lines(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    shown = []
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, width=100, color_system=None)
        train(resolve(runs.settings(bert, files, tmp_path / str(is_terminal))), console=console)
        shown.append(console.file.getvalue())
    assert "10/10 steps" in shown[0]
    assert "\x1b[" not in shown[1]
    assert [line[:9] for line in shown[1].splitlines() if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert "left)" in shown[1]


@pytest.mark.parametrize("method", ["rm-lora", "full"])
def test_accumulated_batches_are_one_batch(tmp_path: Path, files: tuple[Path, Path], method: str) -> None:
    bert = runs.save_bert(tmp_path / "m", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    found = []
    for batch, accumulation in ((8, 1), (4, 2)):
        sizes = {"batch_size": batch, "gradient_accumulation_steps": accumulation}
        changes = {"method": method, "training": {"optimizer": "sgd", "lr": 0.1, "epochs": 1, **sizes}}
        train(resolve(runs.settings(bert, files, tmp_path / str(batch), **changes)))
        found.append(runs.rows(tmp_path / str(batch))[0])
    assert found[0]["step"] == found[1]["step"] == 5
    assert found[0]["eval_loss"] == pytest.approx(found[1]["eval_loss"], abs=1e-6)
    assert found[0]["running_loss"] == pytest.approx(found[1]["running_loss"], abs=1e-6)


def test_unsloth_617_a_seed_decides_everything(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(resolve(runs.settings(bert, files, tmp_path / name, training={"epochs": 1, "seed": seed})))
    assert runs.equal(runs.weights(tmp_path / "a"), runs.weights(tmp_path / "b"))
    assert not runs.equal(runs.weights(tmp_path / "a"), runs.weights(tmp_path / "c"))


def test_bf16_and_checkpointing_train(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    changes = {"epochs": 1, "precision": "bf16", "gradient_checkpointing": True}
    result = train(resolve(runs.settings(bert, files, tmp_path / "run", training=changes)))
    assert 0 < result["last"]["eval_loss"] < 5
    assert all(w.dtype == torch.float32 for w in runs.weights(tmp_path / "run").values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_fp16_on_a_cpu_is_refused(tmp_path: Path, bert: Path, files: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        train(resolve(runs.settings(bert, files, tmp_path / "run", training={"precision": "fp16"})))
    assert not (tmp_path / "run").exists()
