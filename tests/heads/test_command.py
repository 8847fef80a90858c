"""`rmlora train scope=head`: the same folder, the same manners as every other run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from rmlora.heads import training
from tests import runs

SEEN = ("metrics.jsonl", "predictions.safetensors", "head.safetensors", "adapter_model.safetensors", "README.md")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, data and run.yaml in the current folder."""
    return runs.settle(tmp_path, monkeypatch)


def head(*words: object) -> int:
    """A quick run: two epochs of five steps."""
    quick = ("lora.r=2", "epochs=2", "batch_size=8", "max_length=16", "lr=1e-2")
    return runs.call("train", "run.yaml", "scope=head", *quick, *words)


def test_the_folder_is_that_of_every_other_run(place: Path) -> None:
    assert head("method=rm-lora", "weight=1e-2", "directions=1") == 0
    assert runs.call("train", "run.yaml", "lora.r=2", "epochs=1", "output=whole") == 0
    names = {p.name for p in (place / "out").iterdir()}
    whole = {p.name for p in (place / "whole").iterdir()} - {"checkpoints"}
    assert names == whole | {"head.safetensors", "frozen.safetensors"}
    written = yaml.safe_load((place / "out" / "config.yaml").read_text())
    assert (written["scope"], written["output"], written["lora"]["r"]) == ("head", "out", 2)
    result = json.loads((place / "out" / "result.json").read_text())
    assert result["last"] == runs.rows(place / "out")[-1]
    assert result.keys() >= json.loads((place / "whole" / "result.json").read_text()).keys()


def test_full_leaves_the_layer_and_no_adapter(place: Path) -> None:
    assert head("method=full") == 0
    names = {p.name for p in (place / "out").iterdir()}
    assert "head.safetensors" in names
    assert not [name for name in names if name.startswith(("adapter", "frozen"))]


def test_a_dry_run_tells_what_there_is_to_do_and_writes_nothing(
    place: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = runs.files_of(place)
    for method, trained in (("lora", 2 * (32 + 2) + 2), ("full", 66)):
        assert head(f"method={method}", "--dry-run") == 0
        said = capsys.readouterr().out
        assert "32 features per example: 56 examples to be computed" in said
        assert re.search(rf"T: trainable at the start .* {trained} ", said)
        assert "Steps: 5 an epoch, 10 in all" in said
    assert runs.files_of(place) == before
    assert not cache.exists()
    assert head() == 0
    assert head("output=other", "--dry-run") == 0
    assert "32 features per example: in the cache" in capsys.readouterr().out


def test_a_resumed_run_equals_one_that_was_never_interrupted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert head() == 0
    calls: list[int] = []

    def interrupt(*_: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return {"penalty": 0.0}

    with monkeypatch.context() as patched:
        patched.setattr(training, "measure_update", interrupt)
        assert head("output=stopped") == 130
    assert len(calls) == 2
    assert not (place / "stopped" / "result.json").exists()
    assert head("output=stopped", "--resume") == 0
    for name in SEEN:
        one, other = ((place / folder / name).read_bytes() for folder in ("out", "stopped"))
        assert one.replace(b"output: out", b"") == other.replace(b"output: stopped", b""), name


def test_a_finished_run_is_left_alone_unless_it_is_to_be_replaced(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert head() == 0
    before = runs.files_of(place / "out")
    assert runs.call("train", "--resume", "--output", "out") == 0
    assert "is finished; nothing to do" in capsys.readouterr().out
    assert head() == 2
    assert "holds a finished run; give --overwrite" in capsys.readouterr().err
    assert head("--resume", "lr=1e-3") == 2
    assert "training.lr was 0.01 and is now 0.001" in capsys.readouterr().err
    assert runs.files_of(place / "out") == before
    assert head("method=full", "--overwrite") == 0
    assert not (place / "out" / "adapter_model.safetensors").exists()
    assert not (place / "out" / "frozen.safetensors").exists()


def test_data_that_changed_since_the_run_began_are_not_gone_on_with(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert head() == 0
    (place / "out" / "result.json").unlink()
    runs.write_jsonl(place / "dev.jsonl", runs.pairs(16, seed=2))
    assert head("--resume") == 2
    assert "has changed since the run began" in capsys.readouterr().err
    assert not (place / "out" / "result.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["head.frozn=zero"], 'did you mean "head.frozen"?'),
        (["scope=heads"], "'derivative-free', got 'heads'"),
        (["task=causal-lm"], "scope=head needs a task with one label per example"),
        (["method=adalora"], "method adalora has none: choose another"),
        (["method=rm-lora", "directions=3"], "directions=3 exceeds r=2"),
        (["lora.r=3", "init_lora_weights=orthogonal"], "PEFT refuses the lora settings"),
        (["training.save=best"], "scope=head has no training.save=best"),
        (["training.metric=pearson"], "training.metric"),
        (["model=nowhere/at/all"], 'no model folder "nowhere/at/all"'),
        (["--eval", "missing.jsonl"], 'no data file "missing.jsonl"'),
        (["head.features=classifier", "model=deberta"], "use head.features=mean"),
    ],
)
def test_bad_input_is_one_line_before_any_feature_is_computed(
    words: list[str], message: str, place: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "model=deberta" in words:
        runs.save_deberta(place / "deberta")
    for dry in ([], ["--dry-run"]):
        assert head(*words, *dry) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert said[-1].startswith("error: ")
        assert message in said[-1]
        assert not (place / "out").exists()
        assert not cache.exists()


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert head() == 2
    assert "one process, but 2 were started" in capsys.readouterr().err


def test_the_adapter_loads_in_plain_peft_and_gives_the_predictions(place: Path) -> None:
    import torch
    from peft import PeftModel

    from rmlora.config_source import read_config, resolve
    from rmlora.heads.plan import prepare

    assert head("head.standardise=true", "head.frozen=random") == 0
    frozen = load_file(place / "out" / "frozen.safetensors")
    base = torch.nn.Sequential()
    base.add_module("classifier", torch.nn.Linear(32, 2))
    with torch.no_grad():
        base.classifier.weight.copy_(frozen["weight"])
    model = PeftModel.from_pretrained(base, str(place / "out")).eval()
    read = prepare(resolve(read_config(place / "out" / "config.yaml"))).features  # standardised already
    raw = read.eval * read.spread + read.shift
    logits = load_file(place / "out" / "predictions.safetensors")["logits"]
    assert logits.std() > 1e-3
    torch.testing.assert_close(model((raw - frozen["shift"]) / frozen["spread"]), logits, atol=1e-5, rtol=0)
    layer = load_file(place / "out" / "head.safetensors")
    torch.testing.assert_close(raw @ layer["weight"].T + layer["bias"], logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("features", ["mean", "classifier"])
def test_the_code_of_the_card_gives_the_predictions(features: str, place: Path) -> None:
    import torch

    assert head("head.standardise=true", f"head.features={features}") == 0
    card = (place / "out" / "README.md").read_text().replace("<this folder>", "out")
    code = card.partition("```python\n")[2].partition("```")[0]
    assert "rmlora" not in code
    row = runs.pairs(16, seed=1)[3]
    known: dict[str, Any] = {"text": row["sentence1"], "text_pair": row["sentence2"]}
    with torch.no_grad():
        exec(code, known)
        if features == "classifier":
            inputs = known["processor"]([known["text"]], [known["text_pair"]], return_tensors="pt")
            known["outputs"] = known["model"](**inputs).logits
    logits = load_file(place / "out" / "predictions.safetensors")["logits"]
    torch.testing.assert_close(known["outputs"], logits[3:4], atol=1e-5, rtol=0)
