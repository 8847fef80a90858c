"""The command line, in the same process: what it prints, its exit codes, and that it leaves nothing half-written."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from rmlora.cli import main
from rmlora.methods import METHODS
from tests import runs


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, data and a config, which is the current one."""
    runs.save_bert(tmp_path / "model")
    runs.save_pairs(tmp_path)
    config = {"model": "model", "data": {"train": "train.jsonl", "eval": "dev.jsonl"}, "output": "out"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def call(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def tree(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


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
    "knob of another method": (words("run.yaml", "--method", "lora", "--weight", "1"), "r-lora, rm-lora have it"),
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
    "odd orthogonal": (words("run.yaml", "init_lora_weights=orthogonal", "r=3"), "even"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_one_line_and_leaves_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    make, message = BAD[name]
    given = make(place)
    before = tree(place)
    capsys.readouterr()
    assert call("train", *given) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err + shown.out
    assert tree(place) == before
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("inspect", "none"), "none"),
        (("inspekt",), "inspekt"),
        (("inspect",), "adapter"),
        (("demo", "--seeds", "0"), "--seeds"),
    ],
)
def test_other_commands_fail_in_one_line_too(
    place: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], message: str
) -> None:
    assert call(*command) == 2
    shown = capsys.readouterr().err
    assert message in shown.lower()
    assert (shown.count("\n"), shown[:7]) == (1, "error: ")


def test_a_dry_run_says_everything_and_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(place)
    assert call("train", "run.yaml", "lora.r=4", "--weight", "1e-3", "--directions", "0.5", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert tree(place) == before
    assert not (place / "out").exists()
    # 2 blocks x (4 projections 32 -> 32, 32 -> 64, 64 -> 32) at r = 4, and a classifier of 2 x 32 + 2
    adapter = 2 * 4 * (4 * (32 + 32) + 2 * (32 + 64))
    for text in (f"{adapter:,}", f"{adapter + 66:,}", "12 pairs", "bert.encoder.layer.*.attention.self.query"):
        assert text in shown
    assert "AddOrthogonality(weight=0.001" in shown
    assert "Steps: 2 an epoch, 6 in all" in shown
    settings = yaml.safe_load(shown[: shown.index("Parameters")])
    assert settings["method_args"] == {"weight": 1e-3, "directions": 0.5}
    assert (settings["lora"]["lora_alpha"], settings["training"]["lr"]) == (8, 1e-3)


def test_flags_alone_train_and_inspect_reads_the_result(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--train", "train.jsonl", "--eval", "dev.jsonl")
    given = ("--model", "model", *files, "--method", "gm-lora", "--r", "4", "--directions", "1", "--epochs", "1")
    assert call("train", *given, "--batch-size", "8", "--seed", "3", "--output", "run") == 0
    shown = capsys.readouterr().out
    assert "epoch 1/1" in shown
    assert "rmlora inspect run" in shown
    assert "Compare with lora: rmlora train" in shown
    assert json.loads((place / "run" / "result.json").read_text())["seed"] == 3
    assert call("inspect", "run", "--plot", "spectra.png") == 0
    assert "query" in capsys.readouterr().out
    assert (place / "spectra.png").read_bytes().startswith(b"\x89PNG")
    assert call("inspect", "run", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["modules"]) == 12


def test_what_a_run_says_to_do_next_works(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "run.yaml", "r=2", "epochs=1", "--weight", "1e-3") == 0
    lines = capsys.readouterr().out.splitlines()
    again = next(line.partition(": ")[2] for line in lines if line.startswith("Compare with"))
    assert call(*again.split()[1:]) == 0
    assert json.loads((place / "out-lora" / "result.json").read_text())["method"] == "lora"


def test_without_an_output_the_folder_is_named_after_the_run(place: Path) -> None:
    assert call("train", "run.yaml", "output=null", "epochs=1", "method=full") == 0
    assert (place / "runs" / f"{place.name}-full-seed0" / "result.json").is_file()


def test_an_interrupted_run_says_how_to_go_on_and_does(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rmlora.run.record import RecordEpochs

    def stop(self: RecordEpochs, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.global_step == 3:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RecordEpochs, "on_step_end", stop, raising=False)
        assert call("train", "run.yaml", "epochs=2") == 130
    shown = capsys.readouterr().err
    assert shown == "interrupted: continue with --resume: rmlora train run.yaml epochs=2 --resume\n"
    assert not (place / "out" / "result.json").exists()
    assert call("train", "--resume", "--output", "out") == 0
    assert "Going on from checkpoint-2" in capsys.readouterr().out
    assert call("train", "run.yaml", "epochs=2") == 2
    assert "finished run; give --overwrite" in capsys.readouterr().err
    assert call("train", "run.yaml", "epochs=2", "--resume") == 0
    assert "nothing to do" in capsys.readouterr().out


def test_methods_are_listed_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("methods") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(METHODS)
    assert all(method.summary in line for method, line in zip(METHODS.values(), lines, strict=True))


def test_the_schema_is_json_and_refuses_unknown_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["model"]
    assert schema["$defs"]["TrainingConfig"]["properties"]["lr_scheduler"]["enum"][0] == "linear"


def test_a_real_process_fails_and_succeeds_alike(place: Path) -> None:
    def run(*given: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "rmlora", *given], capture_output=True, text=True, check=False)

    bad = run("train", "run.yaml", "data.text=sentense1")
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1)
    assert "Traceback" not in bad.stderr
    good = run("--version")
    assert (good.returncode, good.stdout.split()[0], good.stderr) == (0, "rmlora", "")


def test_two_processes_train_one_adapter(place: Path) -> None:
    alone = ["train", "run.yaml", "epochs=1", "batch_size=8", "output=alone"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rmlora"]
    together = ["train", "run.yaml", "epochs=1", "batch_size=4", "output=together"]
    assert call(*alone) == 0
    done = subprocess.run([*torchrun, *together], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/1") == 1
    assert len((place / "together" / "metrics.jsonl").read_text().splitlines()) == 1
    steps = [json.loads((place / name / "result.json").read_text())["steps"] for name in ("alone", "together")]
    assert steps == [5, 5]
    save_file(load_file(place / "together" / "adapter_model.safetensors"), place / "readable.safetensors")
