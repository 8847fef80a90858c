"""The command line, in the same process: what it prints, its exit codes, and that it leaves nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rmlora.methods import METHODS
from tests import runs


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return runs.settle(tmp_path, monkeypatch)


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
    assert runs.call(*command) == 2
    shown = capsys.readouterr().err
    assert message in shown.lower()
    assert (shown.count("\n"), shown[:7]) == (1, "error: ")


def test_a_dry_run_says_everything_and_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = runs.files_of(place)
    assert runs.call("train", "run.yaml", "lora.r=4", "--weight", "1e-3", "--directions", "0.5", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert runs.files_of(place) == before
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
    assert runs.call("train", *given, "--batch-size", "8", "--seed", "3", "--output", "run") == 0
    shown = capsys.readouterr().out
    assert "epoch 1/1" in shown
    assert "rmlora inspect run" in shown
    assert "Compare with lora: rmlora train" in shown
    assert json.loads((place / "run" / "result.json").read_text())["seed"] == 3
    assert runs.call("inspect", "run", "--plot", "spectra.png") == 0
    assert "query" in capsys.readouterr().out
    assert (place / "spectra.png").read_bytes().startswith(b"\x89PNG")
    assert runs.call("inspect", "run", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["modules"]) == 12


def test_what_a_run_says_to_do_next_works(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.call("train", "run.yaml", "r=2", "epochs=1", "--weight", "1e-3") == 0
    lines = capsys.readouterr().out.splitlines()
    again = next(line.partition(": ")[2] for line in lines if line.startswith("Compare with"))
    assert runs.call(*again.split()[1:]) == 0
    assert json.loads((place / "out-lora" / "result.json").read_text())["method"] == "lora"


def test_without_an_output_the_folder_is_named_after_the_run(place: Path) -> None:
    assert runs.call("train", "run.yaml", "output=null", "epochs=1", "method=full") == 0
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
        assert runs.call("train", "run.yaml", "epochs=2") == 130
    shown = capsys.readouterr().err
    assert shown == "interrupted: continue with --resume: rmlora train run.yaml epochs=2 --resume\n"
    assert not (place / "out" / "result.json").exists()
    assert runs.call("train", "--resume", "--output", "out") == 0
    assert "Going on from checkpoint-2" in capsys.readouterr().out
    assert runs.call("train", "run.yaml", "epochs=2") == 2
    assert "finished run; give --overwrite" in capsys.readouterr().err
    assert runs.call("train", "run.yaml", "epochs=2", "--resume") == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("given", [(), ("train",), ("--help",), ("train", "--help")])
def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str], given: tuple[str, ...]) -> None:
    assert runs.call(*given) == 0
    shown = capsys.readouterr()
    assert "Usage:" in shown.out
    assert shown.err == ""


def test_methods_are_listed_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.call("methods") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(METHODS)
    assert all(method.summary in line for method, line in zip(METHODS.values(), lines, strict=True))


def test_the_schema_is_json_and_refuses_unknown_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.call("schema") == 0
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


@pytest.mark.slow
def test_two_processes_train_what_one_would(place: Path) -> None:
    runs.save_bert(place / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rmlora"]
    words = ["train", "run.yaml", "epochs=1", "--weight", "1e-2", "optimizer=sgd", "lr=0.1"]
    assert runs.call(*words, "batch_size=8", "output=alone") == 0
    together = [*torchrun, *words, "batch_size=4", "output=together"]
    done = subprocess.run(together, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/1") == done.stdout.count(" 5 steps an epoch") == 1
    alone, shared = (runs.weights(place / name) for name in ("alone", "together"))
    assert max(float((alone[key] - shared[key]).abs().max()) for key in alone) < 1e-5
    rows = [runs.rows(place / name)[0] for name in ("alone", "together")]
    assert rows[0]["step"] == rows[1]["step"] == 5
    assert rows[0]["eval_loss"] == pytest.approx(rows[1]["eval_loss"], abs=1e-5)
