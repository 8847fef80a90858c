"""Law 10: whatever is wrong is one line, exit code 2, no traceback, and nothing half-written."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests import runs


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return runs.settle(tmp_path, monkeypatch)


def bad_yaml(place: Path) -> list[str]:
    (place / "run.yaml").write_text("model: [a\nlora: {")
    return ["run.yaml"]


def empty_file(place: Path) -> list[str]:
    (place / "train.jsonl").write_text("")
    return ["run.yaml"]


def label_out_of_range(place: Path) -> list[str]:
    runs.write_jsonl(place / "dev.jsonl", [{"sentence1": "a", "sentence2": "b", "label": 5}])
    return ["run.yaml"]


def unseen_label(place: Path) -> list[str]:
    for name, labels in (("train", ("yes", "no")), ("dev", ("yes", "nope"))):
        runs.write_jsonl(place / f"{name}.jsonl", [{"text": "a", "label": label} for label in labels])
    return ["run.yaml"]


def not_a_number(place: Path) -> list[str]:
    runs.write_jsonl(place / "dev.jsonl", [{"sentence1": "a", "sentence2": "b", "label": "high"}])
    return ["run.yaml", "task=text-regression"]


def file_for_a_folder(place: Path) -> list[str]:
    (place / "out").write_text("a file")
    return ["run.yaml", "output=out/deeper"]


def used_folder(place: Path) -> list[str]:
    (place / "out").mkdir()
    (place / "out" / "thesis.tex").write_text("mine")
    return ["run.yaml"]


def make_adapter(place: Path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(place / "model", num_labels=2)
    made = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    made.save_pretrained(place / "adapter")
    return place / "adapter"


def corrupted_adapter(place: Path) -> list[str]:
    weights = make_adapter(place) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    return ["run.yaml", "init_adapter=adapter"]


def adapter_of_another_base(place: Path) -> list[str]:
    make_adapter(place)
    runs.save_bert(place / "wide", hidden=64)
    return ["run.yaml", "model=wide", "init_adapter=adapter"]


def corrupted_model(place: Path) -> list[str]:
    weights = place / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return ["run.yaml"]


def pickled_model(place: Path) -> list[str]:
    import torch

    tensors = load_file(place / "model" / "model.safetensors")
    (place / "model" / "model.safetensors").unlink()
    torch.save(tensors, place / "model" / "pytorch_model.bin")
    return ["run.yaml"]


def large_vocabulary(place: Path) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    tokenizer.add_tokens([f"word{i}" for i in range(40)])
    tokenizer.save_pretrained(place / "model")
    return ["run.yaml"]


def words(*given: str) -> Callable[[Path], list[str]]:
    return lambda place: list(given)


BAD = {
    "unknown key": (words("run.yaml", "lora.rank=4"), r'unknown setting "lora.rank"'),
    "misspelt key": (words("run.yaml", "training.epochz=4"), r'did you mean "training.epochs"'),
    "bad yaml": (bad_yaml, "run.yaml, line 2: not valid YAML"),
    "no config": (words("rum.yaml"), 'no config file "rum.yaml" (did you mean "run.yaml"?)'),
    "two configs": (words("run.yaml", "other.yaml"), "expected one config file"),
    "nothing": (words("--lr", "0.1"), '"model" is missing'),
    "wrong type": (words("run.yaml", "epochs=many"), '"training.epochs"'),
    "negative rate": (words("run.yaml", "--lr", "-1"), '"training.lr": input should be greater than 0'),
    "flag of no number": (words("run.yaml", "--epochs", "many"), "--epochs"),
    "unknown flag": (words("run.yaml", "--epoch", "3"), "--epoch"),
    "resume and overwrite": (words("run.yaml", "--resume", "--overwrite"), "give one of them"),
    "directions > r": (words("run.yaml", "--r", "4", "--directions", "5"), "directions"),
    "directions = 0": (words("run.yaml", "--directions", "0"), "directions"),
    "directions of words": (words("run.yaml", "--directions", "half"), 'got "half"'),
    "negative weight": (words("run.yaml", "--weight", "-1e-3"), "weight"),
    "unknown method": (words("run.yaml", "--method", "rmlora"), 'did you mean "rm-lora"?'),
    "knob of another method": (words("run.yaml", "--method", "lora", "--weight", "1"), "; r-lora, rm-lora"),
    "unknown knob": (words("run.yaml", "method_args.wieght=1"), 'did you mean "weight"?'),
    "wrong preset": (words("run.yaml", "preset=author"), "authors"),
    "no modules": (words("run.yaml", "target_modules=[quary]"), 'no module matches "quary" (did you mean "query"?)'),
    "missing file": (words("run.yaml", "data.train=trian.jsonl"), 'did you mean "train.jsonl"?'),
    "empty file": (empty_file, '"train.jsonl" (data.train) is empty'),
    "wrong column": (words("run.yaml", "data.text=sentense1"), 'did you mean "sentence1"?'),
    "label out of range": (label_out_of_range, "dev.jsonl, row 1: label 5 is out of range 0..1"),
    "unseen label": (unseen_label, 'dev.jsonl, row 2: label "nope" does not occur in training'),
    "label is no number": (not_a_number, "dev.jsonl, row 1: label 'high' is not a number"),
    "no data": (words("run.yaml", "data.train=null", "data.eval=null"), "no data: give data.train"),
    "file for a folder": (file_for_a_folder, '"out" is a file, not a folder'),
    "folder of the kernel": (words("run.yaml", "output=/proc/rmlora"), 'cannot write to "/proc/rmlora"'),
    "folder in use": (used_folder, "holds no rmlora run"),
    "missing model": (words("run.yaml", "model=./modle"), 'no model folder "./modle"'),
    "folder without model": (words("run.yaml", "model=."), 'has no config.json; did you mean "model"?'),
    "unreachable model": (words("run.yaml", "model=nobody/nothing"), 'cannot load the model of "nobody/nothing"'),
    "corrupted model": (corrupted_model, 'the weights of "model" are damaged'),
    "pickled model": (pickled_model, "safetensors"),
    "foreign tokenizer": (large_vocabulary, "they do not belong together"),
    "missing adapter": (words("run.yaml", "init_adapter=none"), "none"),
    "corrupted adapter": (corrupted_adapter, "adapter_model.safetensors is damaged"),
    "adapter of another base": (adapter_of_another_base, 'does not fit "wide"'),
    "adapter of full": (words("run.yaml", "method=full", "init_adapter=adapter"), "method full has no adapter"),
    "metric of another task": (words("run.yaml", "metric=pearson"), "has accuracy, f1, matthews"),
    "unknown optimizer": (words("run.yaml", "optimizer=adamv"), "adamv"),
    "unknown tracker": (words("run.yaml", "report_to=[wanbd]"), '"wanbd" is no tracker'),
    "odd orthogonal": (words("run.yaml", "init_lora_weights=orthogonal", "r=3"), "even"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_one_line_and_leaves_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    make, message = BAD[name]
    given = make(place)
    before = runs.files_of(place)
    capsys.readouterr()
    assert runs.call("train", *given) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err + shown.out
    assert runs.files_of(place) == before
    assert not (place / "runs").exists()
